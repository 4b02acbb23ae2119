"""Trees that yield the most tokens per pass (Sequoia, arXiv 2402.12374, section 3)."""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_tree.shapes.tree_knapsack import tree_knapsack
from sequoia_tree.tree import Tree

# Llama3-8B-Instruct drafting for Llama3-70B-Instruct, CNN daily news: the first 20 of the 31 values that the paper
# prints in its appendix. They hold all but 0.5 % of the acceptance, and never increase.
DEFAULT_ACCEPTANCE = (
    0.7732, 0.1039, 0.0402, 0.0206, 0.0128, 0.0081, 0.0064, 0.0043, 0.0035, 0.0026,
    0.0025, 0.0021, 0.0016, 0.0014, 0.0010, 0.0010, 0.0010, 0.0007, 0.0007, 0.0006,
)  # fmt: skip

_SUM_SLACK = 1e-6  # for vectors stored in float32


def optimal_tree(
    acceptance: ArrayLike, size: int, max_depth: int | None = None, max_children: int | None = None
) -> Tree:
    """The tree with the most `expected_tokens` among all trees of at most `size` nodes, root included.

    acceptance[k - 1] is the probability that the k-th child is the accepted one; no node gets more children than the
    vector has entries, nor more than `max_children`, and no node lies deeper than `max_depth`. Nodes come level by
    level, siblings in drawing order. Fewer than `size` nodes come back when the limits hold no more, or when every
    further node would have no chance of being accepted. 4,096 nodes take milliseconds for a vector that never
    increases, and tenths of a second for nearly any other.

    ValueError: acceptance empty, not one-dimensional, negative, not finite or with a sum above 1; size below 1; a
    negative limit.
    """
    check_limits(size, max_depth=max_depth, max_children=max_children)
    vector = checked_acceptance(acceptance)[:max_children]
    depth = size - 1 if max_depth is None else min(max_depth, size - 1)
    build = best_first if np.all(np.diff(vector) <= 0) else tree_knapsack
    return _level_by_level(build(vector, size, depth))


def expected_tokens(tree: Tree, acceptance: ArrayLike) -> float:
    """Expected tokens per pass: the sum over all nodes of the product of acceptances along their path.

    The root counts 1, the bonus token. A child beyond the end of `acceptance` is never accepted. ValueError as for
    `optimal_tree`.
    """
    return math.fsum(expected_reach(tree, acceptance).tolist())


def expected_reach(tree: Tree, acceptance: ArrayLike) -> NDArray[np.float64]:
    """The chance that each node is accepted, float64 [size]: the product of the acceptances on its path.

    The root's is 1. ValueError as for `optimal_tree`.
    """
    chances = np.array([1.0, *checked_acceptance(acceptance), 0.0])  # by child number; the root's is 0
    reach = chances[tree.child_number_array.clip(max=len(chances) - 1)]
    further = tree.parent_array.clip(min=0)
    while further.any():  # each round doubles the generations that the products cover
        reach *= reach[further]
        further = further[further]
    return reach


def chain(size: int) -> Tree:
    """`size` nodes in a line, root included: plain speculative decoding. ValueError when size is below 1."""
    return Tree(range(-1, size - 1))


def best_first(acceptance: NDArray[np.float64], size: int, max_depth: int) -> Tree:
    """The `size` nodes of largest path product: the best tree where `acceptance` never increases. O(size · log size).

    A heap holds, for every node taken, its next sibling and its first child; none of them is likelier than that node,
    so the best of all nodes left is always in the heap. Nodes come in the order they were taken.
    """
    chances = acceptance.tolist()
    parents, reach = [-1], [1.0]
    # (-path product, depth, parent, place among the siblings): of equal products the shallower, then earlier slot.
    slots = [(-chances[0], 1, 0, 0)] if chances and max_depth > 0 else []
    while slots and slots[0][0] < 0 and len(parents) < size:
        product, depth, parent, place = heapq.heappop(slots)
        node = len(parents)
        parents.append(parent)
        reach.append(-product)
        if place + 1 < len(chances):
            heapq.heappush(slots, (-reach[parent] * chances[place + 1], depth, parent, place + 1))
        if depth < max_depth:
            heapq.heappush(slots, (product * chances[0], depth + 1, node, 0))
    return Tree(parents)


def checked_acceptance(acceptance: ArrayLike) -> NDArray[np.float64]:
    """`acceptance` as float64 [children]. ValueError if it is not valid for `optimal_tree`."""
    try:
        vector = np.asarray(acceptance, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"acceptance must be a list of numbers ({error})") from error
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"acceptance must be a list of at least one number, got shape {vector.shape}")
    if not np.all(np.isfinite(vector)) or vector.min() < 0:
        raise ValueError(f"acceptance holds probabilities, finite and not negative, got {vector.tolist()}")
    if vector.sum() > 1 + _SUM_SLACK:
        raise ValueError(f"at most one child is accepted, so acceptance sums to at most 1, got {vector.sum():.6f}")
    return vector


def check_limits(size: int, **limits: int | None) -> None:
    """ValueError for a `size` below 1 and for negative limits; the message names the limit."""
    if size < 1:
        raise ValueError(f"size counts the root and must be at least 1, got {size}")
    for name, limit in limits.items():
        if limit is not None and limit < 0:
            raise ValueError(f"{name} must be 0 or more, or None for no limit, got {limit}")


def _level_by_level(tree: Tree) -> Tree:
    order = [0]
    for node in order:  # the list is its own breadth-first queue
        order.extend(tree.children[node])
    places = {node: place for place, node in enumerate(order)}
    return Tree([-1, *(places[tree.parents[node]] for node in order[1:])])
