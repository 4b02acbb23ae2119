"""The best tree for any acceptance vector: a tree knapsack over a core of slots that is proven to be enough.

A slot can hold a node: the k-th child of one node. It can be filled only after the slot of child k - 1 and that
of the parent. So slots form a binary tree (a slot leads to its next sibling and to its first child), and the best tree
of n nodes is the best connected part of n slots. Over a given set of slots a knapsack finds it exactly, for all n:

    T[slot][0] = 0
    T[slot][n] = reach[slot] + max over m of  T[first child][m] + T[next sibling][n - 1 - m]

All merges together take at most (slots)² / 2 additions, whatever the depth and the number of children. Which slots are
needed is guessed, then proven: the core takes slots by what their best bundle yields per node, and it is enough once no
tree that goes on into slots outside can yield more. Otherwise the core grows. Sequoia's own recurrence (arXiv
2402.12374, section 3) gives the same optimum in size² · depth · children.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sequoia_tree.tree import Tree

Floats = NDArray[np.float64]

_NOTHING = np.zeros(1)  # the table of a slot that is not in the core
_LEVELS = 20  # depths below a slot that are told apart; more count as no limit
_EXACT = 128  # nodes below one slot up to which their best yield is known in the first round; doubled in each further
_SPARE = 64  # slots of the first core beyond 5/4 of the nodes; half as many again in each further
_ROUNDING = 1e-13  # of the optimum: what a proof may miss by


@dataclass(frozen=True)
class Core:
    """Slots in the order they were taken, from the root's first child on; -1 where a neighbour is outside.

    `outside` lists those neighbours, as the row of `_gains`, the child's index and the reach of its parent.
    """

    reach: list[float] = field(default_factory=list)  # chance that the node there is accepted
    first_child: list[int] = field(default_factory=list)
    next_sibling: list[int] = field(default_factory=list)
    outside: list[tuple[int, int, float]] = field(default_factory=list)
    tables: list[Floats] = field(default_factory=list)  # T[slot], up to size - 1 nodes or all there are below it

    def below(self, slot: int) -> tuple[Floats, Floats]:
        """The tables of a slot's first child and next sibling."""
        child, sibling = self.first_child[slot], self.next_sibling[slot]
        return self.tables[child] if child >= 0 else _NOTHING, self.tables[sibling] if sibling >= 0 else _NOTHING


def tree_knapsack(acceptance: Floats, size: int, max_depth: int) -> Tree:
    """The best tree of at most `size` nodes, none deeper than `max_depth`; parents come before their children.

    O(size²) additions while the core stays small, as it nearly always does, and at most as much memory.
    """
    chances = np.trim_zeros(acceptance[: size - 1], "b")
    if not chances.size or not max_depth:
        return Tree([-1])
    return _filled(proven_core(chances, size, max_depth))


def proven_core(acceptance: Floats, size: int, max_depth: int) -> Core:
    """A core that holds a best tree of `size` nodes. `acceptance` does not end in 0; `size` is 2 or more."""
    slots, exact = size + size // 4 + _SPARE, _EXACT
    while True:
        exact = min(exact, size - 1)
        gains = _gains(acceptance, exact, max_depth)
        core = _grown(acceptance, size, max_depth, gains, slots)
        _solve(core, size)
        if not core.outside or _is_enough(core, _outside_yields(core, acceptance, gains, size)):
            return core
        slots, exact = slots * 3 // 2, exact * 2


def _gains(acceptance: Floats, limit: int, max_depth: int) -> Floats:
    """The most that up to n nodes yield in child k's slot and those reached from it, float64 [row, child, limit + 1].

    The parent's reach counts 1. Row d: with d more levels below the children; the last row: with any number of them,
    where `max_depth` is above `_LEVELS`.
    """
    rows, endless = min(max_depth, _LEVELS), max_depth > _LEVELS
    deeper = np.array([*range(rows - 1), *[-1] * endless], dtype=np.intp)  # children's row, for all rows but the first
    gains = np.zeros((rows + endless, len(acceptance) + 1, limit + 1))
    child = np.empty((rows + endless, len(acceptance), limit + 1))  # a child's own part: itself and m - 1 below it
    child[...] = acceptance[:, None]
    for n in range(1, limit + 1):
        child[1:, :, n] += acceptance * gains[deeper, :1, n - 1]
        gains[:, :-1, n] = (child[:, :, n:0:-1] + gains[:, 1:, :n]).max(axis=2)
    return gains[:, :-1]


def _grown(acceptance: Floats, size: int, max_depth: int, gains: Floats, slots: int) -> Core:
    """At least `slots` slots, best first by the most that they and what they lead to yield per node.

    It stops between bundles only: in the middle of one the best slot outside would be better than the last inside.
    """
    per_node = (gains[..., 1:] / np.arange(1, gains.shape[2])).max(axis=2).tolist()
    chances, last_row = acceptance.tolist(), len(per_node) - 1
    core = Core()
    # (-yield per node, depth, nodes on the way to it and at it, parent's reach, child, slot that leads to it, its list)
    heap = [(-per_node[min(max_depth - 1, last_row)][0], 1, 1, 1.0, 0, -1, core.first_child)]
    least = -np.inf
    while heap and (len(core.reach) < slots or heap[0][0] < least):
        key, depth, position, parent_reach, child, leader, link = heapq.heappop(heap)
        least = max(least, key)
        slot, reach = len(core.reach), parent_reach * chances[child]
        if leader >= 0:
            link[leader] = slot
        core.reach.append(reach)
        core.first_child.append(-1)
        core.next_sibling.append(-1)
        if position + 1 < size and child + 1 < len(chances):
            key = -parent_reach * per_node[min(max_depth - depth, last_row)][child + 1]
            heapq.heappush(heap, (key, depth, position + 1, parent_reach, child + 1, slot, core.next_sibling))
        if position + 1 < size and depth < max_depth and reach > 0:
            key = -reach * per_node[min(max_depth - depth - 1, last_row)][0]
            heapq.heappush(heap, (key, depth + 1, position + 1, reach, 0, slot, core.first_child))
    core.outside.extend((min(max_depth - depth, last_row), child, reach) for _, depth, _, reach, child, *_ in heap)
    return core


def _solve(core: Core, size: int) -> None:
    """Fill `core.tables`; every slot comes after the one that leads to it."""
    core.tables.extend([_NOTHING] * len(core.reach))
    for slot in range(len(core.reach) - 1, -1, -1):
        rest = _merged(*core.below(slot))[: size - 1]
        core.tables[slot] = np.concatenate((_NOTHING, rest + core.reach[slot]))


def _merged(one: Floats, other: Floats) -> Floats:
    """max over m of one[m] + other[n - m] for each n."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    if len(shorter) == 1:
        return longer
    merged = np.full(len(longer) + len(shorter) - 1, -np.inf)
    for m, value in enumerate(shorter.tolist()):
        part = merged[m : m + len(longer)]
        np.maximum(part, longer + value, out=part)
    return merged


def _outside_yields(core: Core, acceptance: Floats, gains: Floats, size: int) -> Floats:
    """A bound on what n nodes yield that hang at one slot outside the core, float64 [size].

    Exact up to the nodes that `gains` covers. More nodes at child k are siblings, which yield at most the sum of
    acceptance[k:], and nodes below them. Those yield at most max(acceptance[k:]) · rate each, the rate of a first child
    being the best mean of the vector's first entries. Or, in the long run: a connected part of a binary tree falls into
    pieces of a third to all of the covered nodes, and none yields more per node than the best of that size.
    """
    highest = np.zeros(gains.shape[:2])
    for row, child, parent_reach in core.outside:
        highest[row, child] = max(highest[row, child], parent_reach)
    known = (highest[..., None] * gains).max(axis=(0, 1))
    piece = np.arange((len(known) + 1) // 3, len(known))
    later = (gains[-1][:, piece] / piece).max()
    rate = (acceptance.cumsum() / np.arange(1, len(acceptance) + 1)).max()
    siblings = acceptance[::-1].cumsum()[::-1, None]
    likeliest = np.maximum.accumulate(acceptance[::-1])[::-1, None]
    more = np.arange(len(known), size)
    long_run = siblings * (1 + gains[-1, 0, -1]) + likeliest * later * more
    bounds = np.minimum(siblings + likeliest * rate * more, long_run)
    bounds[0] = np.minimum(bounds[0], rate * more)
    return np.concatenate((known, (highest.max(axis=0)[:, None] * bounds).max(axis=0)))


def _is_enough(core: Core, yields: Floats) -> bool:
    """Whether no tree with nodes outside the core yields more than the best one inside, but for rounding.

    Such a tree is one inside with parts that hang outside. `bound` allows any number of parts, each at the best slot.
    """
    best = core.tables[0]
    bound = best.copy()
    for n in range(1, len(bound)):
        bound[n] = max(bound[n], (bound[:n][::-1] + yields[1 : n + 1]).max())
    return bool(bound[-1] <= best[-1] + _ROUNDING * (1 + best[-1]))


def _filled(core: Core) -> Tree:
    """The best tree in the core, without nodes that add nothing."""
    parents = [-1]
    todo = [(0, 0, int(core.tables[0].argmax()))]  # slot, parent, nodes for the slot and what it leads to
    while todo:
        slot, parent, nodes = todo.pop()
        node, rest = len(parents), nodes - 1
        parents.append(parent)
        child, sibling = core.below(slot)
        fewest, most = max(0, rest - len(sibling) + 1), min(rest, len(child) - 1)
        totals = child[fewest : most + 1] + sibling[rest - most : rest - fewest + 1][::-1]
        share = fewest + int(totals.argmax())
        if share < rest:
            todo.append((core.next_sibling[slot], parent, rest - share))
        if share:
            todo.append((core.first_child[slot], node, share))
    return Tree(parents)
