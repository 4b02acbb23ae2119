"""The shape of a tree of draft tokens: plain Python and numpy, built once, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tree:
    """A rooted tree over nodes 0 … size − 1, every parent before its children.

    Node 0 is the root: the last accepted token, whose parent is -1. The children of a node are ordered, as they are
    drawn one after another. The lists and the mask handed out are shared; do not write to them. ValueError for parents
    that form no such tree.
    """

    parents: list[int]

    def __init__(self, parents: Iterable[int]) -> None:
        object.__setattr__(self, "parents", [index(parent) for parent in parents])
        _check(self.parents)

    def __hash__(self) -> int:
        return hash(tuple(self.parents))

    @property
    def size(self) -> int:
        """Number of nodes, root included."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Depth of the deepest node; 0 for the root alone."""
        return max(self.depths)

    @cached_property
    def depths(self) -> list[int]:
        """Distance of each node from the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    @cached_property
    def children(self) -> list[list[int]]:
        """The children of each node, in drawing order."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], 1):
            children[parent].append(node)
        return children

    @cached_property
    def child_numbers(self) -> list[int]:
        """Which child of its parent each node is, counted from 1; 0 for the root."""
        numbers = [0] * self.size
        for siblings in self.children:
            for number, node in enumerate(siblings, 1):
                numbers[node] = number
        return numbers

    @cached_property
    def levels(self) -> list[list[int]]:
        """The nodes at each depth; levels[0] is [0]."""
        levels: list[list[int]] = [[] for _ in range(self.depth + 1)]
        for node, depth in enumerate(self.depths):
            levels[depth].append(node)
        return levels

    def path(self, node: int) -> list[int]:
        """The nodes on the way from the root, which is left out, to `node`."""
        path: list[int] = []
        while node > 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """bool [size, size]: entry (i, j) tells whether j is i or an ancestor of i, so whether i attends to j."""
        return self._ancestors

    @cached_property
    def _ancestors(self) -> NDArray[np.bool_]:
        """Made once: a static tree is scored in every pass."""
        mask = np.eye(self.size, dtype=np.bool_)
        for node, parent in enumerate(self.parents[1:], 1):
            mask[node] |= mask[parent]
        return mask

    def prune(self, alive: Sequence[bool]) -> tuple[Tree, list[int]]:
        """The tree of the nodes that are alive together with all their ancestors, and those nodes' present ids.

        `alive` holds one truth value per node; the root's must be true. The ids are increasing: place i of the new
        tree is place kept[i] of this one. Pruning by the *value* of a drawn token biases every ratio test; prune only
        slots for which nothing could be drawn.
        """
        if len(alive) != self.size or not alive[0]:
            raise ValueError(f"alive needs one value for each of {self.size} nodes, true for the root; got {alive!r}")
        new_ids = {-1: -1}
        for node, parent in enumerate(self.parents):
            if alive[node] and parent in new_ids:
                new_ids[node] = len(new_ids) - 1
        kept = list(new_ids)[1:]
        return Tree(new_ids[self.parents[node]] for node in kept), kept


def _check(parents: list[int]) -> None:
    if not parents:
        raise ValueError("a tree has at least a root; got no parents")
    if parents[0] != -1:
        raise ValueError(f"parents[0] is the root's and must be -1, got {parents[0]}")
    for node, parent in enumerate(parents[1:], 1):
        if not 0 <= parent < node:
            raise ValueError(f"parents[{node}] must be an earlier node, 0 to {node - 1}, got {parent}")
