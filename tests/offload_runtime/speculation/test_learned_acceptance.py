"""What passes teach about a pair: the same as observing the distributions at the accepted path's nodes, one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.errors import ModelFilesError
from offload_runtime.speculation import acceptance_store, learned_acceptance
from offload_runtime.speculation.acceptance_store import ACCEPTANCE_FILE, Measurement, PairAcceptance, Setting
from offload_runtime.speculation.draft import joined
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.lookup.text_candidates import Candidates, with_candidates
from offload_runtime.speculation.verification import Scored
from sequoia_tree import Tree
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.acceptance.observe import observe, observe_greedy
from sequoia_tree.shaping.repetition import RepetitionPenalty
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import draw_without_replacement, log_probs
from sequoia_tree.verification.verify import AcceptedPath
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed

VOCABULARY = 40
TREE = Tree([-1, 0, 0, 0, 1, 1, 4])
PATH = [1, 4]  # two children under the last node but one, one under the last
SAMPLINGS = [Sampling(), Sampling(temperature=0.9, top_p=0.9), Sampling(temperature=0.8, repetition_penalty=1.5)]


def random_logits(rows, seed):
    return 2 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def draft_tree(sampling, seed=0):
    """A tree with tokens drawn from the distributions of a random draft; its distributions stand in another order than
    its nodes.
    """
    inner = np.flatnonzero(TREE.child_count_array)
    distribution_rows = np.full(TREE.size, -1)
    distribution_rows[inner] = np.arange(len(inner))[::-1]
    logits = random_logits(len(inner), seed)
    distributions = log_probs(logits, sampling) if sampling.temperature else logits.log_softmax(-1)
    tokens, generator = [7] * TREE.size, torch.Generator().manual_seed(seed)
    for node in inner:
        children = TREE.children[node]
        drawn = draw_without_replacement(distributions[distribution_rows[node], None], len(children), generator)[
            0
        ].tolist()
        assert min(drawn) >= 0, "a distribution with a token for every child"
        for child, token in zip(children, drawn):
            tokens[child] = token
    return DraftTree(
        TREE, tokens, TREE.size, distribution_rows - 1, joined([distributions], sampling), distribution_rows
    )


def scored(sampling, seed=0):
    drawn = draft_tree(sampling, seed)
    penalty = sampling.repetition_penalty
    bound = replace(sampling, rules=(RepetitionPenalty(penalty),) if penalty != 1 else ())
    return Scored.of(drawn, random_logits(drawn.tree.size, seed + 1), [3, 5, 7], bound)


def observed(scored, nodes):
    """Each node's own distributions and children, observed alone; -1 beyond its last child."""
    total, most = Acceptance.empty(), max(map(len, TREE.children))
    for node in nodes:
        ids = torch.tensor([node])
        children = [scored.drawn.tokens[child] for child in TREE.children[node]]
        children = torch.tensor([children + [-1] * (most - len(children))])
        total += observe(scored.distributions.target(ids), scored.draft_distribution(ids), children)
    return total


def assert_equal(found, expected):
    for name, values in expected.as_dict().items():
        assert np.asarray(getattr(found, name)) == pytest.approx(np.asarray(values), abs=1e-6), name


@pytest.fixture
def pair():
    """Two checkpoints of which nothing was measured."""
    return checkpoint("llama"), checkpoint("llama", seed=3, num_hidden_layers=1)


@pytest.fixture
def measured_pair(pair):
    """The same with tables beside the draft: 3000 contexts at temperature 0.6, 50 at 1."""
    tables = {Setting(temperature=0.6): 3000, Setting(temperature=1.0): 50}
    made = {setting: Measurement(Acceptance.from_positional([0.6, 0.2], n)) for setting, n in tables.items()}
    file = pair[1] / ACCEPTANCE_FILE
    acceptance_store.write(file, PairAcceptance("target", "draft", made), pair[0])
    yield pair
    file.unlink()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_pass_teaches_what_its_path_shows(sampling, pair):
    known, one = LearnedAcceptance(*pair), scored(sampling)
    assert known.now(sampling).positions == 0
    known.learn(one, AcceptedPath(PATH, 0))
    assert_equal(known.now(sampling), observed(one, [0, *PATH]))
    other = scored(sampling, seed=5)
    known.learn(other, AcceptedPath([2], 0))  # a leaf, under which nothing was drawn
    assert_equal(known.now(sampling), observed(one, [0, *PATH]) + observed(other, [0]))
    assert known.measured(sampling).positions == 0, "what was known at the start stays"
    assert known.now(Sampling(temperature=0.3)).positions == 0, "another setting learns nothing"


def test_a_greedy_pass_teaches_ranks(pair):
    known, greedy = LearnedAcceptance(*pair), Sampling(temperature=0, repetition_penalty=1.5)
    one = scored(greedy)
    known.learn(one, AcceptedPath(PATH, 0))
    nodes = torch.tensor([0, *PATH])
    assert_equal(known.now(greedy), observe_greedy(one.processed(nodes), one.draft_distribution(nodes)))
    assert known.now(greedy).scale_positions == 3


def test_candidates_from_the_text_teach_nothing(pair):
    """They were not drawn: neither they nor the nodes among them say anything about the draft."""
    sampling = SAMPLINGS[0]
    one = scored(sampling)
    joined = with_candidates(one.drawn, Candidates([one.drawn.tokens[1], 39, 38, 37], 3))
    longer = Scored.of(joined, torch.cat((one.logits, random_logits(3, 9))), [3, 5, 7], sampling)
    assert joined.tree.size == TREE.size + 3 and joined.tree.parents[TREE.size] == 1
    known = LearnedAcceptance(*pair)
    known.learn(longer, AcceptedPath([1, TREE.size, TREE.size + 1], 0))
    assert_equal(known.now(sampling), observed(one, [0, 1]))


def test_of_an_unmeasured_setting_the_nearest_counts_a_little(measured_pair):
    known = LearnedAcceptance(*measured_pair)
    assert known.measured(Sampling(temperature=0.6)).positions == pytest.approx(3000)
    borrowed = known.measured(Sampling(temperature=0.7))
    assert borrowed.positions == pytest.approx(300)
    assert borrowed.positional()[:2] == pytest.approx([0.6, 0.2], abs=1e-4)
    assert known.measured(Sampling(temperature=1.2)).positions == pytest.approx(50), "no more than there are"
    assert known.measured(Sampling(temperature=0)).positions == 0, "sampling never stands in for greedy decoding"


def test_a_well_known_pair_is_looked_at_now_and_then(measured_pair, monkeypatch):
    known, sampling = LearnedAcceptance(*measured_pair), Sampling(temperature=0.6)
    one = scored(sampling)
    before = known.now(sampling).positions
    for _ in range(24):
        known.learn(one, AcceptedPath([], 0))
    assert known.now(sampling).positions - before == pytest.approx(3)
    for _ in range(24):
        known.learn(scored(Sampling()), AcceptedPath([], 0))
    assert known.now(Sampling()).positions == pytest.approx(50 + 24), "another setting is not known as well"


def test_what_is_known_does_not_change_its_object_for_nothing(measured_pair):
    known = LearnedAcceptance(*measured_pair)
    assert known.now(SAMPLINGS[0]) is known.now(SAMPLINGS[0])


def test_a_damaged_file_is_refused(pair):
    file = pair[1] / ACCEPTANCE_FILE
    file.write_text("{")
    try:
        with pytest.raises(ModelFilesError, match=r"acceptance\.json"):
            LearnedAcceptance(*pair)
    finally:
        file.unlink()


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_runtime_learns_while_it_writes(temperature, monkeypatch):
    """One context for the root of every pass, and one for every accepted node that had children."""
    target = checkpoint("llama")
    monkeypatch.setattr(learned_acceptance, "_ENOUGH", 1e9)
    options = {"device": "cpu", "context_length": 128, "tree": "adaptive", "tree_size": 12, "tree_depth": 3}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=40, temperature=temperature)
        ((_, known),) = runtime._decoder._policy._known._now.items()
    passes, accepted = reply.stats.passes, reply.stats.accepted
    assert passes < known.positions <= passes + accepted
    assert known.scale_positions == (0 if temperature else known.positions)
