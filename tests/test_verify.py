"""Exactness: tokens of whole passes against the exact law of the target, and known biased variants caught by it.

The models are Markov chains: the law of the next token is the row of a table that the last token names.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import Tree, chain, optimal_tree
from sequoia_tree.sampling import Sampling, draw_without_replacement, log_law
from sequoia_tree.verify import ratio_tests, verify_greedy, verify_top_down
from tests.chi_square import p_value

VOCABULARY = 5
PASSES = 3000
STAR, BUSHY = Tree([-1, 0, 0, 0, 0]), Tree([-1, 0, 0, 1, 1, 2, 0, 3])
TREES = {"chain": chain(4), "star": STAR, "bushy": BUSHY, "optimal": optimal_tree([0.5, 0.2, 0.1, 0.1], 10)}
LAWS = {
    "plain": Sampling(),
    "hot": Sampling(temperature=2.0),
    "cold": Sampling(temperature=0.05),
    "zeros": Sampling(temperature=0.6, top_p=0.8),
}


def logits(seed):
    return 1.5 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def tables(sampling, likeness=0.5):
    """Log-laws [V, V] of a target and of a draft that resembles it, by the last token."""
    target = logits(1)
    return log_law(target, sampling), log_law(likeness * target + (1 - likeness) * logits(2), sampling)


def sampled_children(laws, count, generator):
    return draw_without_replacement(laws, count, generator)


def improbable_dropped(laws, count, generator):
    """Biased: whether a child stays depends on which token it is."""
    drawn = draw_without_replacement(laws, count, generator)
    return drawn.masked_fill(laws.exp().gather(-1, drawn.clamp(min=0)) < 0.2, -1)


def most_likely_children(laws, count, generator):
    """Biased under ratio tests: the children are not drawn at all."""
    return laws.topk(count).indices


def fill(tree, roots, draft, children, generator):
    """Tokens [n, size] of one tree under each of `roots` [n]; -1 where there is no node."""
    tokens = torch.full((len(roots), tree.size), -1)
    tokens[:, 0] = roots
    for node, places in enumerate(tree.children):
        if places:
            drawn = children(draft[tokens[:, node]], len(places), generator)
            tokens[:, places] = drawn.masked_fill(tokens[:, node, None] < 0, -1)
    return tokens.tolist()


def one_pass(tree, tokens, target, draft, generator):
    """The tokens that verification of one filled tree yields."""
    if -1 in tokens:
        tree, kept = tree.prune([token >= 0 for token in tokens])
        tokens = [tokens[node] for node in kept]
    verdict = verify_top_down(tree, tokens, lambda i: target[tokens[i]], lambda i: draft[tokens[i]], generator)
    return [*(tokens[node] for node in verdict.path), verdict.bonus]


def two_tokens(tree, target, draft, children=sampled_children, reuse_noise=False):
    """Counts [V, V] of the first two tokens after token 0, in as many passes as they take."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    short: list[tuple[int, torch.Tensor]] = []  # first tokens that came alone, and the noise they were found with
    for tokens in fill(tree, torch.zeros(PASSES, dtype=torch.int64), draft, children, generator):
        noise = generator.get_state()
        first, *more = one_pass(tree, tokens, target, draft, generator)
        if more:
            counts[first, more[0]] += 1
        else:
            short.append((first, noise))
    second_passes = fill(tree, torch.tensor([first for first, _ in short]), draft, children, generator)
    for (first, noise), tokens in zip(short, second_passes):
        if reuse_noise:
            generator.set_state(noise)
        counts[first, one_pass(tree, tokens, target, draft, generator)[0]] += 1
    return counts


def exactness(counts, target):
    """p-values of the first token, and of the first two together."""
    law = target.double().exp()
    joint = law[0][:, None] * law
    return p_value(counts.sum(1), law[0]), p_value(counts, joint / joint.sum())


@pytest.mark.parametrize(
    ("tree", "law"),
    [
        ("chain", "plain"),
        ("star", "plain"),
        ("bushy", "hot"),
        ("optimal", "cold"),
        ("bushy", "zeros"),
        ("star", "zeros"),
    ],
)
def test_top_down_yields_the_target_law(tree, law):
    target, draft = tables(LAWS[law])
    assert min(exactness(two_tokens(TREES[tree], target, draft), target)) > 1e-3


def test_top_down_is_exact_where_draft_and_target_share_few_tokens():
    target, draft = tables(Sampling())
    target, draft = target.clone(), draft.clone()
    target[:, :2] = -math.inf
    draft[:, 3:] = -math.inf
    target, draft = target.log_softmax(-1), draft.log_softmax(-1)
    assert min(exactness(two_tokens(BUSHY, target, draft), target)) > 1e-3


@pytest.mark.parametrize("children", [improbable_dropped, most_likely_children])
def test_biased_children_fail_the_same_test(children):
    target, draft = tables(Sampling())
    first, joint = exactness(two_tokens(BUSHY, target, draft, children), target)
    assert first < 1e-9 and joint < 1e-9


def test_noise_reused_from_pass_to_pass_fails_the_same_test():
    target, draft = tables(Sampling())
    first, joint = exactness(two_tokens(chain(2), target, draft, reuse_noise=True), target)
    assert first > 1e-3 and joint < 1e-9  # one pass alone looks right


def test_a_draft_equal_to_the_target_is_always_accepted():
    target = log_law(logits(1), Sampling())
    generator = torch.Generator().manual_seed(0)
    for tokens in fill(chain(6), torch.zeros(300, dtype=torch.int64), target, sampled_children, generator):
        assert len(one_pass(chain(6), tokens, target, target, generator)) == 6


def test_a_rejected_child_never_comes_back_as_the_bonus_token():
    target, draft = torch.tensor([0.0, 0.5, 0.5]).log(), torch.tensor([0.4, 0.3, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        verdict = verify_top_down(chain(2), [7, 0], lambda _: target, lambda _: draft, generator)
        assert verdict.path == [] and verdict.bonus in (1, 2)


def test_laws_far_apart_and_far_from_even():
    """A draft all but certain of the wrong token, at temperature 0.05: its second child has probability e^-60."""
    target, draft = torch.tensor([-60.0, 0.0, -200.0]), torch.tensor([0.0, -60.0, -61.0])
    generator = torch.Generator().manual_seed(0)
    accepted = [
        verify_top_down(Tree([-1, 0, 0]), [7, 0, 1], lambda _: target, lambda _: draft, generator).path
        for _ in range(200)
    ]
    assert accepted == [[2]] * 200  # p = 1 against q = .73 once the first child is gone


def test_rounding_that_leaves_no_residual_does_not_end_the_text(monkeypatch):
    """Laws that differ by the last bit of the child's token, and a number that falls just there."""
    monkeypatch.setattr(torch, "rand", lambda _, **options: torch.tensor(1 - 2**-24))
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.5 + 2**-24, 0.5])
    accepted, weights = ratio_tests([0], p, q, torch.Generator())
    assert accepted is None and weights.tolist() == [0.5, 0.5]


def test_laws_are_asked_only_on_the_way():
    target, draft = tables(Sampling())
    asked = {"target": [], "draft": []}

    def law(name, table, tokens):
        return lambda node: asked[name].append(node) or table[tokens[node]]

    generator = torch.Generator().manual_seed(0)
    for tokens in fill(BUSHY, torch.zeros(50, dtype=torch.int64), draft, sampled_children, generator):
        asked["target"], asked["draft"] = [], []
        laws = law("target", target, tokens), law("draft", draft, tokens)
        path = verify_top_down(BUSHY, tokens, *laws, generator).path
        assert asked["target"] == [0, *path]
        assert asked["draft"] == [node for node in (0, *path) if BUSHY.children[node]]


@pytest.mark.parametrize("tokens", [[7, -1], [7, 2]])
def test_children_that_were_not_drawn_are_a_bug(tokens):
    law = torch.tensor([0.5, 0.5, 0.0]).log()
    with pytest.raises(AssertionError, match=r"must be pruned|was not drawn"):
        verify_top_down(chain(2), tokens, lambda _: law, lambda _: law, torch.Generator())


@settings(deadline=None)
@given(st.data())
def test_greedy_yields_the_targets_own_tokens(data):
    """For any tree, any tokens and any target: the tokens are those that the target would write alone."""
    size = data.draw(st.integers(1, 20))
    tree = Tree([-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))])
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    answer = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    verdict = verify_greedy(tree, tokens, best=[answer[depth] for depth in tree.depths])
    assert [*(tokens[node] for node in verdict.path), verdict.bonus] == answer[: len(verdict.path) + 1]
    end = verdict.path[-1] if verdict.path else 0
    assert all(tokens[child] != verdict.bonus for child in tree.children[end])
    assert [tree.parents[node] for node in verdict.path] == [0, *verdict.path][: len(verdict.path)]
