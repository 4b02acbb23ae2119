"""Baselines to compare the best tree with: independent chains (SpecInfer, arXiv 2305.09781) and complete trees."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sequoia_tree.shapes.construct import check_limits, checked_acceptance
from sequoia_tree.tree import Tree


def chains(count: int, length: int) -> Tree:
    """A root with `count` chains of `length` nodes each: count · length + 1 nodes, level by level.

    "16 × 48" is chains(16, 48). ValueError when either number is below 1.
    """
    if count < 1 or length < 1:
        raise ValueError(f"there must be at least 1 chain of at least 1 node, got {count} of {length}")
    return Tree([-1, *[0] * count, *range(1, count * (length - 1) + 1)])


def k_ary(children: int, size: int, max_depth: int | None = None) -> Tree:
    """The first `size` nodes, root included, of the tree in which every node has `children` children; level by level.

    Fewer where a complete tree of `max_depth` holds no more. ValueError when children or size is below 1, or the depth
    negative.
    """
    check_limits(size, max_depth=max_depth)
    if children < 1:
        raise ValueError(f"every node must have at least 1 child, got {children}")
    last = 0  # of the nodes down to `depth`
    depth = 0
    while last < size - 1 and depth != max_depth:
        last = last * children + children
        depth += 1
    return Tree((node - 1) // children for node in range(min(size, last + 1)))


def best_chains(acceptance: ArrayLike, size: int, max_depth: int | None = None) -> Tree:
    """The `chains` of equal length with the most `expected_tokens` among those of at most `size` nodes.

    Of equally good ones, the fewest and longest chains. The root alone if size or depth allows no more.
    ValueError as for `optimal_tree`.
    """
    check_limits(size, max_depth=max_depth)
    vector = checked_acceptance(acceptance)
    depth = size - 1 if max_depth is None else min(max_depth, size - 1)
    if depth == 0:
        return Tree([-1])
    counts = np.arange(1, min(len(vector), size - 1) + 1)
    lengths = np.minimum((size - 1) // counts, depth)
    # After its first node a chain goes on through first children, so all have the same expected length.
    length_reached = np.cumsum(vector[0] ** np.arange(depth))
    best = int(np.argmax(np.cumsum(vector)[: len(counts)] * length_reached[lengths - 1]))
    return chains(int(counts[best]), int(lengths[best]))
