"""Expected tokens that a rule accepts from a drafted tree, averaged over the rule's random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.tree import Tree
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests

Floats = NDArray[np.float64]


def expected_yield(rule: str, tree: Tree, tokens: Tensor, distributions: Distributions) -> float:
    """Expected tokens, the bonus token among them, of "traversal", "top-down" or "multi-round" (else ValueError).

    tokens: int64 [n]. Far less noisy than the tokens that one accepted path yields: comparisons need fewer passes.
    """
    if rule in ("traversal", "top-down", "multi-round"):
        if tree.size == 1:
            return 1.0
        tests = RatioTests(tree, tokens, distributions, rule == "traversal", rule == "multi-round")
        if rule == "traversal":
            return 1 + _traversal_depth(tree, tests.weights.cpu().numpy())
        return _reach(tree, tests.chances.cpu().numpy()).sum()
    raise ValueError(f"there is no expectation for rule {rule!r}; there is one for traversal, top-down and multi-round")


def _traversal_depth(tree: Tree, leaving: Floats) -> float:
    """Mean depth of the node at which the walk in post-order ends."""
    rejected = 1 - leaving[tree.post_order]
    ends_here = leaving[tree.post_order] * np.concatenate(([1.0], np.cumprod(rejected)[:-1]))
    return float(ends_here @ tree.depth_array[tree.post_order])


def _reach(tree: Tree, chances: Floats) -> Floats:
    """Chance that the path from the root leads through each node; 1 for the root."""
    reach, rejected = np.ones(tree.size), np.ones(tree.size)  # rejected: all children so far, of each node
    for node in range(1, tree.size):
        parent = tree.parents[node]
        reach[node] = reach[parent] * rejected[parent] * chances[node]
        rejected[parent] *= 1 - chances[node]
    return reach
