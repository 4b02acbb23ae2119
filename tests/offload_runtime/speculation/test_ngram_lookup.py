"""Drafting from the text itself: exact through the runtime, proposed where it pays and text repeats itself."""

from collections.abc import Callable

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import verification
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.lookup import ngram_lookup as repeated_text_trees
from offload_runtime.speculation.lookup.ngram_lookup import NAME, Chances, NgramTrees, repetition
from offload_runtime.speculation.tree_policy import Situation
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import draw
from sequoia_tree.verification.verify import AcceptedPath
from tests.offload_runtime.exactness import test_sampling_exactness as exactness
from tests.offload_runtime.speculation.test_automatic_tree import Times
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, streaming_runtime

OPTIONS = {"device": "cpu", "context_length": 192}
NEW_TOKENS = 60
LOOPING = list(PROMPT) * 3


def target():
    """A model whose greedy text soon goes round in circles of several tokens."""
    return checkpoint("llama", seed=5, initializer_range=0.1)


def set_times(runtime: OffloadRuntime, passes: Callable[[int], float]) -> None:
    policy = runtime._decoder._policy
    assert isinstance(policy, NgramTrees)
    policy._times, policy._timed = Times(passes), 2


def grown(policy: NgramTrees, text: list[int]) -> DraftTree:
    """The tree of a text whose seed does not matter."""
    return policy.method(Situation(Sampling(temperature=0), len(text))).grow(text, Sampling(temperature=0), None)


def test_continuations_are_joined_where_they_begin_alike():
    found = [(3, [5, 6, 7]), (2, [5, 8])]
    repeated = repetition(found, Chances(), 9)
    assert repeated.tokens[0] == 5 and repeated.parents[0] == 0
    tokens = dict(zip(repeated.tokens, repeated.parents))
    assert set(tokens) == {5, 6, 7, 8} and tokens[6] == tokens[8] == 1
    assert repeated.reach == sorted(repeated.reach, reverse=True) and sum(repeated.reach[1:3]) < repeated.reach[0] < 1
    assert repeated.lengths[:2] == [3, 4]
    assert repetition(found, Chances(), 2).tokens == [5, 6]
    assert repetition([], Chances(), 2).tokens == []


def test_chances_follow_what_was_right():
    chances = Chances()
    before = [chances.of(length) for length in (2, 4, 8, 100)]
    assert before == sorted(before) and before[-1] < 1
    for _ in range(50):
        chances.add(4, False)
        chances.add(40, True)
    assert chances.of(4) < 0.1 and chances.of(33) == chances.of(32) > 0.95 and chances.of(2) == before[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_greedy_text_is_the_targets_own(streamed):
    open_it = streaming_runtime if streamed else OffloadRuntime.from_pretrained
    options = {"draft": "auto", "context_length": 192, "tree_size": 12, **({} if streamed else {"device": "cpu"})}
    with open_it(target(), **options) as runtime:
        assert bool(runtime.plan.slots) == streamed
        if not streamed:
            set_times(runtime, lambda rows: 1.0)
        assert runtime.plan.tree_size == 12 and runtime.plan.draft is None
        for prompt in (list(PROMPT), LOOPING):
            reply = runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0)
            assert reply.token_ids == greedy(target(), prompt, NEW_TOKENS)
        assert reply.stats.methods[NAME] > 1 and reply.stats.tokens_per_pass > 1.3
        assert reply.stats.peak_device_bytes <= runtime.plan.device_budget


def test_nothing_is_proposed_behind_an_end_token():
    with OffloadRuntime.from_pretrained(target(), tree_size=12, **OPTIONS) as runtime:
        set_times(runtime, lambda rows: 1.0)
        sampling = Sampling(temperature=0)
        method = runtime._decoder._policy.method(Situation(sampling, len(LOOPING)))
        drawn = [method.grow(LOOPING, sampling, None, ends) for ends in (frozenset(), frozenset([PROMPT[1]]))]
    assert drawn[0].tokens[1:4] == list(PROMPT[:3])
    assert drawn[1].tokens[1:] == list(PROMPT[:2])


def test_nothing_is_proposed_where_computing_is_the_limit():
    with OffloadRuntime.from_pretrained(target(), **OPTIONS) as runtime:
        set_times(runtime, lambda rows: 1.0 * rows)
        reply = runtime.generate(LOOPING, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.stats.methods == {"none": NEW_TOKENS} and reply.stats.drafted == 0
    assert reply.token_ids == greedy(target(), LOOPING, NEW_TOKENS)


def test_nothing_is_proposed_before_a_resident_target_was_timed():
    with OffloadRuntime.from_pretrained(target(), **OPTIONS) as runtime:
        steps = list(runtime.stream(LOOPING, max_new_tokens=4, temperature=0))
    assert [step.drafted for step in steps[:2]] == [0, 0]


def test_trees_grow_with_what_was_right_and_shrink_with_what_was_not():
    class Plan:
        tree_size, nodes, texts, tree_depth, rows, slots, seconds_per_pass = 16, 16, 1, 15, 64, 0, None

    def nodes(right: bool) -> int:
        policy = NgramTrees(Plan())
        policy._times, policy._timed = Times(lambda rows: 1 + 0.2 * rows), 2
        for _ in range(30):
            for length in range(33):
                policy._chances.add(length, right)
        return grown(policy, [1, 2, 3, 4, 5, 6] * 3).tree.size

    assert nodes(False) == 1 < nodes(True) == 16


def test_a_text_without_repetition_drafts_nothing():
    with OffloadRuntime.from_pretrained(target(), **OPTIONS) as runtime:
        set_times(runtime, lambda rows: 1.0)
        policy = runtime._decoder._policy
        assert grown(policy, list(range(50))).tree.size == 1
        assert grown(policy, [*range(50), 0]).tree.size == 1, "one token is chance"


@pytest.mark.parametrize(
    "options, size",
    [
        ({"draft": "none"}, 1),
        ({"draft": None}, 1),
        ({"tree": "none"}, 1),
        ({"tree": "sequoia"}, 1),
        ({"tree_size": 5}, 5),
        ({}, 16),
    ],
)
def test_what_turns_it_off(options, size):
    with OffloadRuntime.from_pretrained(target(), **OPTIONS, **options) as runtime:
        assert runtime.plan.tree_size == size
        reply = runtime.generate(LOOPING, max_new_tokens=8, temperature=0)
    assert size > 1 or set(reply.stats.methods) == {"none"}


def test_a_recurrent_model_decodes_plainly_and_says_why():
    prepared = prepare(Options(checkpoint("mamba"), "auto", device="cpu"))
    assert prepared.plan.tree_size == 1 and "recurrent state" in prepared.draft_note


def test_a_seed_repeats_its_text_whatever_was_learnt():
    with OffloadRuntime.from_pretrained(target(), **OPTIONS) as runtime:
        seeded = {"max_new_tokens": NEW_TOKENS, "temperature": 0.4, "seed": 5}
        first = runtime.generate(LOOPING, **seeded)
        assert first.stats.drafted > 0
        set_times(runtime, lambda rows: 1.0 * rows)
        runtime.generate(LOOPING, max_new_tokens=30, temperature=0.4)
        assert runtime.generate(LOOPING, **seeded).token_ids == first.token_ids


REPEATING = [3, 1, 2, 0, 5, 5, 4, 3, 1, 2, 0, 5, 1, 3, 1, 2, 0]


@pytest.fixture
def repeating(monkeypatch):
    """A text that ended like this twice before, and went on differently from the second token on."""
    monkeypatch.setattr(exactness, "PROMPT", REPEATING)
    monkeypatch.setattr(repeated_text_trees, "_LIKELY", 0.0)
    with OffloadRuntime.from_pretrained(exactness.target(), device="cpu", context_length=48) as runtime:
        yield runtime


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.9}, {"repetition_penalty": 2.0}], ids=str)
def test_sampled_text_follows_the_distribution_of_the_target(repeating, sampling):
    counts, single_passes = exactness.sampled(repeating, range(300), **sampling)
    assert exactness.agreement(counts, exactness.joint_distribution(**sampling)) > 1e-4
    assert repeating.last_reply.stats.drafted > 2 and single_passes < 0.95


def test_repetitions_that_are_accepted_without_a_match_are_found(repeating, monkeypatch):
    """The control."""

    def accept_unseen(tree, tokens, accepted_path, nodes, distributions, generator):
        child = next((node for node in nodes if tree.parents[node] == accepted_path.last), None)
        if child is None:
            return accepted_path
        return AcceptedPath(
            [*accepted_path.path, child], draw(distributions.target(torch.tensor([child]))[0], generator)
        )

    monkeypatch.setattr(verification, "follow", accept_unseen)
    exactness.assert_found(repeating, 300)
