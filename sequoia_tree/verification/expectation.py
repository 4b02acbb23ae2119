"""Expected tokens that a rule keeps of a drafted tree, averaged over the rule's random numbers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.tree import Tree
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests

Floats = NDArray[np.float64]


def expected_yield(
    rule: str, tree: Tree, tokens: Tensor, distributions: Distributions, ends: Collection[int] = ()
) -> float:
    """Expected tokens, the bonus token among them, of "traversal", "top-down" or "multi-round" (else ValueError).

    tokens: int64 [n]. ends: tokens that end the text, so that nothing behind one counts. Far less noisy than the tokens
    that one accepted path yields: comparisons need fewer passes.
    """
    if rule in ("traversal", "top-down", "multi-round"):
        if tree.size == 1:
            return 1.0
        tests = RatioTests(tree, tokens, distributions, rule == "traversal", rule == "multi-round")
        kept = _kept(tree, tokens.tolist(), ends)
        if rule == "traversal":
            return float(_traversal_ends(tree, tests.weights.cpu().numpy()) @ kept[tree.post_order])
        gained = np.concatenate(([1], kept[1:] - kept[tree.parent_array[1:]]))
        return float(_reach(tree, tests.chances.cpu().numpy()) @ gained)
    raise ValueError(f"there is no expectation for rule {rule!r}; there is one for traversal, top-down and multi-round")


def _kept(tree: Tree, tokens: list[int], ends: Collection[int]) -> NDArray[np.int64]:
    """Tokens that a path to each node yields, up to an end token on it, else with the bonus token; the root's is 1."""
    kept, ended = np.ones(tree.size, dtype=np.int64), np.zeros(tree.size, dtype=np.bool_)
    for node in range(1, tree.size):
        parent = tree.parents[node]
        ended[node] = ended[parent] or tokens[node] in ends
        kept[node] = kept[parent] + (not ended[node])
    return kept


def _traversal_ends(tree: Tree, leaving: Floats) -> Floats:
    """The chance of each node, in post-order, that the walk ends there."""
    rejected = 1 - leaving[tree.post_order]
    return leaving[tree.post_order] * np.concatenate(([1.0], np.cumprod(rejected)[:-1]))


def _reach(tree: Tree, chances: Floats) -> Floats:
    """Chance that the path from the root leads through each node; 1 for the root."""
    reach, rejected = np.ones(tree.size), np.ones(tree.size)  # rejected: all children so far, of each node
    for node in range(1, tree.size):
        parent = tree.parents[node]
        reach[node] = reach[parent] * rejected[parent] * chances[node]
        rejected[parent] *= 1 - chances[node]
    return reach
