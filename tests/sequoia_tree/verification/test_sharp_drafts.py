"""Drafts that are all but certain: what they leave beside one token is tiny, and the rules must not lose it.

Chances, weights and what is left for the bonus token are held against exact arithmetic in fractions, for drafts that
leave 1e-3 to 1e-30 after each of their tokens.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from sequoia_tree import Tree
from sequoia_tree.acceptance.observe import credits
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests
from sequoia_tree.verification.sampling import draw_without_replacement

RESTS = [10.0**-power for power in (3, 8, 12, 16, 18, 30)]
STAR, BUSHY = Tree([-1, 0, 0, 0]), Tree([-1, 0, 0, 0, 1, 1, 2, 4])

Distribution = list[Fraction]


def draft_rows(rest: float) -> dict[str, list[float]]:
    """By name, distributions over six tokens that leave `rest` beside their first token, before they are normalised."""
    return {
        "two beside one": [1.0, rest * 10 / 14, rest * 4 / 14, 1e-34, 1e-34, 1e-34],
        "one after the other": [1.0, rest, max(rest**2, 1e-34), max(rest**3, 1e-34), 1e-34, 1e-34],
        "even rest": [1.0, *[rest / 5] * 5],
        "two likely ones": [0.6, 0.4, rest, rest / 3, 1e-34, 1e-34],
    }


TARGETS = {
    "certain of the second": [1e-20, 1 - 1e-7, 1e-20, 1e-7, 0.0, 0.0],
    "certain of the third": [1e-9, 1e-9, 1.0, 1e-30, 0.0, 1e-12],
    "open": [0.1, 0.2, 0.3, 0.2, 0.15, 0.05],
    "elsewhere": [0.0, 1e-25, 1e-25, 1e-20, 0.5, 0.5],
    "like the draft": [0.9, 0.05, 0.05, 1e-12, 1e-13, 1e-30],
}


def normalised(distribution: Sequence[Fraction]) -> Distribution:
    return [value / sum(distribution) for value in distribution]


def exact(row: Sequence[float]) -> Distribution:
    """The distribution that float32 numbers stand for."""
    return normalised([Fraction(value) for value in torch.tensor(row).tolist()])


def without(distribution: Distribution, token: int) -> Distribution:
    """The distribution less one token; as it is where nothing else is left."""
    rest = [value if other != token else Fraction(0) for other, value in enumerate(distribution)]
    return normalised(rest) if sum(rest) else rest


def rejected(p: Distribution, q: Distribution, weight: Fraction) -> tuple[Distribution, Fraction]:
    """What the target has left, and the weight, once a child is rejected; see docs/trees.md."""
    left = [max(weight * a - b, Fraction(0)) for a, b in zip(p, q)]
    total = sum(left)
    if not total:
        return p, Fraction(int(weight == 1))
    return normalised(left), total / (total + 1 - weight)


class Exact:
    """The rules in fractions: every node has the same two distributions.

    `traverse` hands weights on from parent to child.
    """

    def __init__(
        self,
        tree: Tree,
        tokens: Sequence[int],
        p: Distribution,
        q: Distribution,
        traverse: bool,
        replacement: bool = False,
    ):
        self.tree, self.tokens, self.p, self.q = tree, tokens, p, q
        self.traverse, self.replacement = traverse, replacement
        self.arriving = [Fraction(1)] * tree.size
        self.leaving = [Fraction(1)] * tree.size
        self.left = [p] * tree.size
        for node in range(tree.size):
            self._visit(node)

    def _visit(self, node: int) -> None:
        p, q = self.p, self.q
        weight = self.arriving[node] if self.traverse else Fraction(1)
        for child in self.tree.children[node]:
            token = self.tokens[child]
            self.arriving[child] = self.leaving[child] = min(Fraction(1), weight * p[token] / q[token])
            p, weight = rejected(p, q, weight)
            q = q if self.replacement else without(q, token)
        self.leaving[node], self.left[node] = weight, p

    def all_rejected(self, node: int, before: int | None = None) -> Fraction:
        """The chance that the children of a node, or those before one of them, are all rejected."""
        children = self.tree.children[node]
        children = children[: children.index(before)] if before else children
        return math.prod((1 - self.arriving[child] for child in children), start=Fraction(1))

    def tried(self, node: int) -> Fraction:
        """The chance that a node is tried, once its parent is."""
        return self.all_rejected(self.tree.parents[node], node) if node else Fraction(1)


def distributions_of(p: Sequence[float], q: Sequence[float]) -> Distributions:
    rows = torch.tensor(p), torch.tensor(q)
    return Distributions(*(lambda nodes, row=row: row.repeat(len(nodes), 1) for row in rows), len(p))


def tokens_of(tree: Tree, q: Sequence[float], replacement: bool = False) -> list[int]:
    """Each node's children hold the likeliest tokens in order; with replacement, the likeliest twice."""
    order = torch.tensor(q).sort(descending=True, stable=True).indices.tolist()
    order = [order[0], *order] if replacement else order
    return [0, *(order[tree.child_number_array[node] - 1] for node in range(1, tree.size))]


def cases(rest: float) -> list[tuple[str, list[float], list[float]]]:
    return [
        (f"{target}, draft with {draft}", p, q)
        for draft, q in draft_rows(rest).items()
        for target, p in TARGETS.items()
    ]


def assert_close(found: torch.Tensor, expected: Sequence[Fraction], chances: Sequence[Fraction], case: str) -> None:
    """Each number to 1e-4 of it, and to 1e-7 over the chance that it matters at all: float32 holds no more."""
    wanted = torch.tensor([float(value) for value in expected], dtype=torch.float64)
    matters = torch.tensor([float(chance) for chance in chances], dtype=torch.float64).clamp(min=1e-300)
    apart = (found.double() - wanted).abs()
    assert (apart <= 1e-4 * wanted + 1e-7 / matters).all(), f"{case}: {found.tolist()}, exactly {wanted.tolist()}"


def assert_same(reference: Exact, arriving: torch.Tensor, left: Sequence[torch.Tensor], case: str) -> None:
    """Chances or weights of all nodes, and what each leaves for the bonus token."""
    tree = reference.tree
    assert_close(arriving, reference.arriving, [reference.tried(node) for node in range(tree.size)], case)
    for node, distribution in enumerate(left):
        distribution = distribution.double() / distribution.double().sum()
        matters = reference.all_rejected(node) * reference.leaving[node]
        assert_close(distribution, reference.left[node], [matters] * len(distribution), f"{case}, bonus at {node}")


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("replacement", [False, True], ids=["top-down", "multi-round"])
def test_ratio_tests_against_exact_arithmetic(rest, replacement):
    tree = BUSHY
    for case, p, q in cases(rest):
        tokens = tokens_of(tree, q, replacement)
        reference = Exact(tree, tokens, exact(p), exact(q), traverse=False, replacement=replacement)
        distributions, held = distributions_of(p, q), torch.tensor(tokens)
        tests = RatioTests(tree, held, distributions, hand_on=False, replacement=replacement)
        assert_same(reference, tests.chances, [tests.left(torch.tensor([node])) for node in range(tree.size)], case)


@pytest.mark.parametrize("rest", RESTS)
def test_traversal_against_exact_arithmetic(rest):
    tree = BUSHY
    for case, p, q in cases(rest):
        tokens = tokens_of(tree, q)
        reference = Exact(tree, tokens, exact(p), exact(q), traverse=True)
        distributions, held = distributions_of(p, q), torch.tensor(tokens)
        tests = RatioTests(tree, held, distributions, hand_on=True)
        assert_same(reference, tests.chances, [tests.left(torch.tensor([node])) for node in range(tree.size)], case)
        matters = [reference.tried(node) * reference.all_rejected(node) for node in range(tree.size)]
        assert_close(tests.weights, reference.leaving, matters, case)


@pytest.mark.parametrize("rest", RESTS)
def test_observed_acceptance_against_exact_arithmetic(rest):
    for case, p, q in cases(rest):
        children = torch.tensor(tokens_of(STAR, q)[1:])
        found, _ = credits(
            *(torch.tensor([distribution]) / sum(distribution) for distribution in (p, q)), children[None]
        )
        p_left, q_left, reach, expected = exact(p), exact(q), Fraction(1), []
        for token in [*children.tolist(), None]:
            expected.append(reach * sum(map(min, p_left, q_left)))
            if token is not None:
                reach *= 1 - min(Fraction(1), p_left[token] / q_left[token])
                p_left, _ = rejected(p_left, q_left, Fraction(1))
                q_left = without(q_left, token)
        torch.testing.assert_close(
            found[0], torch.tensor([float(value) for value in expected]), rtol=1e-4, atol=1e-6, msg=case
        )


@pytest.mark.parametrize("rest", [1e-3, 1e-12, 1e-17, 1e-30])
def test_the_second_token_is_drawn_from_what_the_first_leaves(rest):
    """Beside a token that is all but certain two others share the rest 10 to 4."""
    distribution = torch.tensor([[1.0, rest * 10 / 14, rest * 4 / 14]], dtype=torch.float64)
    rows = (distribution / distribution.sum()).log().float().expand(20_000, 3)
    tokens = draw_without_replacement(rows, 3, torch.Generator().manual_seed(0))
    second = tokens[tokens[:, 0] == 0][:, 1]
    assert len(second) > 19_000
    share = (second == 1).double().mean().item()
    assert share == pytest.approx(10 / 14, abs=0.017)  # 5 standard deviations of 20,000 draws
