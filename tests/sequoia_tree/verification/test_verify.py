"""Exactness: tokens of whole passes against the exact distribution of the target, and known biased variants caught by
it.

The models are Markov chains: the distribution of the next token is the row of a table that the last token names.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import Tree, chain, optimal_tree
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.sampling import draw_with_replacement, draw_without_replacement, log_probs, probabilities
from sequoia_tree.verification.verify import RULES, follow, verify_greedy, verify_top_down
from tests.chi_square import p_value

pytestmark = pytest.mark.slow

VOCABULARY = 4
PASSES = 600
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
    return log_probs(target, sampling), log_probs(likeness * target + (1 - likeness) * logits(2), sampling)


def sampled_children(distributions, count, generator):
    return draw_without_replacement(distributions, count, generator)


def improbable_dropped(distributions, count, generator):
    """Biased: whether a child stays depends on which token it is."""
    drawn = draw_without_replacement(distributions, count, generator)
    return drawn.masked_fill(distributions.exp().gather(-1, drawn.clamp(min=0)) < 0.2, -1)


def most_likely_children(distributions, count, generator):
    """Biased under ratio tests: the children are not drawn at all."""
    return distributions.topk(count).indices


def fill(tree, roots, draft, children, generator):
    """Tokens [n, size] of one tree under each of `roots` [n]; -1 where there is no node."""
    tokens = torch.full((len(roots), tree.size), -1)
    tokens[:, 0] = roots
    for node, places in enumerate(tree.children):
        if places:
            drawn = children(draft[tokens[:, node]], len(places), generator)
            tokens[:, places] = drawn.masked_fill(tokens[:, node, None] < 0, -1)
    return tokens.tolist()


def distributions_of(tokens, target, draft):
    """Distributions at the nodes that hold `tokens` [n], from tables [V, V] of log-laws."""
    return Distributions(
        lambda nodes: probabilities(target[tokens[nodes]]),
        lambda nodes: probabilities(draft[tokens[nodes]]),
        VOCABULARY,
    )


def one_pass(tree, tokens, target, draft, generator, rule):
    """The tokens that verification of one filled tree yields."""
    if -1 in tokens:
        tree, kept = tree.prune([token >= 0 for token in tokens])
        tokens = [tokens[node] for node in kept]
    held = torch.tensor(tokens)
    accepted_path = rule(tree, held, distributions_of(held, target, draft), generator)
    return [*(tokens[node] for node in accepted_path.path), accepted_path.bonus]


def two_tokens(tree, target, draft, rule=verify_top_down, children=sampled_children, reuse_noise=False, passes=PASSES):
    """Counts [V, V] of the first two tokens after token 0, in as many passes as they take."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    short: list[tuple[int, torch.Tensor]] = []  # first tokens that came alone, and the noise they were found with
    for tokens in fill(tree, torch.zeros(passes, dtype=torch.int64), draft, children, generator):
        noise = generator.get_state()
        first, *more = one_pass(tree, tokens, target, draft, generator, rule)
        if more:
            counts[first, more[0]] += 1
        else:
            short.append((first, noise))
    second_passes = fill(tree, torch.tensor([first for first, _ in short]), draft, children, generator)
    for (first, noise), tokens in zip(short, second_passes):
        if reuse_noise:
            generator.set_state(noise)
        counts[first, one_pass(tree, tokens, target, draft, generator, rule)[0]] += 1
    return counts


def exactness(counts, target):
    """p-values of the first token, and of the first two together."""
    distribution = target.double().exp()
    joint = distribution[0][:, None] * distribution
    return p_value(counts.sum(1), distribution[0]), p_value(counts, joint / joint.sum())


@pytest.mark.parametrize(
    ("rule", "tree", "distribution"),
    [
        ("top-down", "chain", "plain"),
        ("top-down", "bushy", "hot"),
        ("top-down", "optimal", "cold"),
        ("top-down", "star", "zeros"),
        ("traversal", "chain", "plain"),
        ("traversal", "star", "plain"),
        ("traversal", "bushy", "hot"),
        ("traversal", "optimal", "cold"),
        ("traversal", "bushy", "zeros"),
        ("match", "bushy", "plain"),
        ("match", "star", "zeros"),
    ],
)
def test_rules_yield_the_target_distribution(rule, tree, distribution):
    target, draft = tables(LAWS[distribution])
    assert min(exactness(two_tokens(TREES[tree], target, draft, RULES[rule]), target)) > 1e-3


@pytest.mark.parametrize("distribution", ["plain", "zeros"])
def test_multi_round_yields_the_target_distribution_where_tokens_repeat(distribution):
    target, draft = tables(LAWS[distribution])
    counts = two_tokens(BUSHY, target, draft, RULES["multi-round"], draw_with_replacement)
    assert min(exactness(counts, target)) > 1e-3


def test_match_takes_children_chosen_in_any_way():
    target, draft = tables(Sampling())
    counts = two_tokens(BUSHY, target, draft, RULES["match"], most_likely_children)
    assert min(exactness(counts, target)) > 1e-3


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_rules_are_exact_where_draft_and_target_share_few_tokens(rule):
    target, draft = tables(Sampling())
    target, draft = target.clone(), draft.clone()
    target[:, :2] = -math.inf
    draft[:, 3:] = -math.inf
    target, draft = target.log_softmax(-1), draft.log_softmax(-1)
    assert min(exactness(two_tokens(BUSHY, target, draft, RULES[rule]), target)) > 1e-3


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
@pytest.mark.parametrize("children", [improbable_dropped, most_likely_children])
def test_biased_children_fail_the_same_test(children, rule):
    target, draft = tables(Sampling())
    first, joint = exactness(two_tokens(BUSHY, target, draft, RULES[rule], children, passes=300), target)
    assert min(first, joint) < 1e-5


def test_multi_round_fails_the_same_test_for_children_drawn_without_replacement():
    target, draft = tables(Sampling())
    first, joint = exactness(two_tokens(STAR, target, draft, RULES["multi-round"], passes=1000), target)
    assert min(first, joint) < 1e-5


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_noise_reused_from_pass_to_pass_fails_the_same_test(rule):
    target, draft = tables(Sampling(), likeness=0)
    first, joint = exactness(two_tokens(chain(2), target, draft, RULES[rule], reuse_noise=True), target)
    assert first > 1e-3 and joint < 1e-6  # one pass alone looks right


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_a_draft_equal_to_the_target_is_always_accepted(rule):
    target = log_probs(logits(1), Sampling())
    generator = torch.Generator().manual_seed(0)
    for tokens in fill(chain(6), torch.zeros(100, dtype=torch.int64), target, sampled_children, generator):
        assert len(one_pass(chain(6), tokens, target, target, generator, RULES[rule])) == 6


def test_traversal_accepts_more_than_top_down():
    target, draft = tables(Sampling())
    lengths = {}
    for rule in ("top-down", "traversal"):
        generator = torch.Generator().manual_seed(0)
        trees = fill(chain(6), torch.zeros(400, dtype=torch.int64), draft, sampled_children, generator)
        lengths[rule] = sum(len(one_pass(chain(6), t, target, draft, generator, RULES[rule])) for t in trees)
    assert lengths["traversal"] > 1.05 * lengths["top-down"]


def constant(target, draft):
    """Distributions that are the same everywhere, from log-laws [V]."""
    return Distributions(
        lambda nodes: probabilities(target.expand(len(nodes), -1)),
        lambda nodes: probabilities(draft.expand(len(nodes), -1)),
        len(target),
    )


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_a_rejected_child_never_comes_back_as_the_bonus_token(rule):
    target, draft = torch.tensor([0.0, 0.5, 0.5]).log(), torch.tensor([0.4, 0.3, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        accepted_path = RULES[rule](chain(2), torch.tensor([7, 0]), constant(target, draft), generator)
        assert accepted_path.path == [] and accepted_path.bonus in (1, 2)


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_distributions_far_apart_and_far_from_even(rule):
    """A draft all but certain of the wrong token, at temperature 0.05: its second child has probability e^-60."""
    target, draft = torch.tensor([-60.0, 0.0, -200.0]), torch.tensor([0.0, -60.0, -61.0])
    generator = torch.Generator().manual_seed(0)
    distributions, tokens = constant(target, draft), torch.tensor([7, 0, 1])
    accepted = [RULES[rule](Tree([-1, 0, 0]), tokens, distributions, generator).path for _ in range(200)]
    assert accepted == [[2]] * 200  # p = 1 against q = .73 once the first child is gone


@pytest.mark.parametrize("rule", ["top-down", "traversal"])
def test_rounding_that_leaves_no_residual_does_not_end_the_text(rule, monkeypatch):
    """Distributions that differ by the last bit of the child's token, and a number that falls just there."""
    uniform = "sequoia_tree.verification.verify._uniform"
    monkeypatch.setattr(uniform, lambda n, device, generator: torch.full((n,), 1 - 2**-25))
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.5 + 2**-24, 0.5])
    distributions = Distributions(
        lambda nodes: p.expand(len(nodes), -1).clone(), lambda nodes: q.expand(len(nodes), -1).clone(), 2
    )
    accepted_path = RULES[rule](chain(2), torch.tensor([1, 0]), distributions, torch.Generator().manual_seed(0))
    assert accepted_path.path == [] and accepted_path.bonus in (0, 1)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_distributions_are_asked_in_blocks(rule, monkeypatch):
    """However few rows fit a block, the accepted path is the same; no distribution is asked for more rows than that."""
    target, draft = tables(LAWS["hot"])
    generator = torch.Generator().manual_seed(0)
    (tokens,) = fill(BUSHY, torch.zeros(1, dtype=torch.int64), draft, sampled_children, generator)
    held, accepted_paths = torch.tensor(tokens), []
    for rows in (1, 2, 100):
        monkeypatch.setattr("sequoia_tree.verification.distributions._BLOCK", rows * VOCABULARY)
        distributions = distributions_of(held, target, draft)

        def limited(nodes, distribution=distributions.target, rows=rows):
            assert len(nodes) <= rows
            return distribution(nodes)

        distributions = Distributions(limited, distributions.draft, VOCABULARY)
        accepted_paths.append(RULES[rule](BUSHY, held, distributions, torch.Generator().manual_seed(3)))
    assert accepted_paths[0] == accepted_paths[1] == accepted_paths[2]


def test_following_matches_after_the_rule_is_done():
    """Nodes that were not drawn, here the likeliest token under every node, keep the distribution exact."""
    target, draft = tables(Sampling())
    tree = Tree([-1, 0, 0, 1, 0, 2, 4, 6])
    drawn = Tree(tree.parents[:4])

    def rule(_, tokens, distributions, generator):
        accepted_path = RULES["traversal"](drawn, tokens[:4], distributions, generator)
        return follow(tree, tokens, accepted_path, range(4, 8), distributions, generator)

    def children(distribution, count, generator):
        return draw_without_replacement(distribution, count, generator)

    counts = torch.zeros(VOCABULARY, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    followed = 0
    for tokens in fill(drawn, torch.zeros(2 * PASSES, dtype=torch.int64), draft, children, generator):
        best = target.argmax(-1).tolist()
        tokens += [best[0], best[tokens[2]], best[best[0]], best[best[best[0]]]]
        yielded = one_pass(tree, tokens, target, draft, generator, rule)
        followed += len(yielded) > 3
        if len(yielded) > 1:
            counts[yielded[0], yielded[1]] += 1
    assert followed > 20
    given = target.double().exp()  # of the second token, whatever the first: it was not cut off by its own value
    values = [p_value(row, distribution) for row, distribution in zip(counts, given) if row.sum() > 50]
    assert len(values) > 2 and min(values) > 1e-3, values


@settings(deadline=None)
@given(st.data())
def test_greedy_yields_the_targets_own_tokens(data):
    """For any tree, any tokens and any target: the tokens are those that the target would write alone."""
    size = data.draw(st.integers(1, 20))
    tree = Tree([-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))])
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    answer = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    best = torch.tensor([answer[depth] for depth in tree.depths])
    accepted_path = verify_greedy(tree, torch.tensor(tokens), best)
    assert [*(tokens[node] for node in accepted_path.path), accepted_path.bonus] == answer[
        : len(accepted_path.path) + 1
    ]
    end = accepted_path.path[-1] if accepted_path.path else 0
    assert all(tokens[child] != accepted_path.bonus for child in tree.children[end])
    assert [tree.parents[node] for node in accepted_path.path] == [0, *accepted_path.path][: len(accepted_path.path)]
