"""The shape of a tree of draft tokens: plain Python and numpy, built once, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_MOST_NODES = 1_000_000  # in a file; a pass over a thousandth of that is already long
_MOST_BYTES = 64 * _MOST_NODES  # so that a checkpoint given by mistake is not read


@dataclass(frozen=True)
class Tree:
    """A rooted tree over nodes 0 … size − 1, every parent before its children.

    Node 0 is the root: the last accepted token, whose parent is -1. The children of a node are in drawing order. The
    lists and arrays returned are shared; do not write to them. The arrays are built without a loop over nodes or
    levels, since an adaptive tree is a new one in every pass. ValueError for parents that form no such tree.
    """

    parents: list[int]
    _parent_array: Ints = field(compare=False, repr=False)

    def __init__(self, parents: Iterable[int]) -> None:
        object.__setattr__(self, "parents", [index(parent) for parent in parents])
        object.__setattr__(self, "_parent_array", _checked(self.parents))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Tree:
        """The tree that `save` wrote to `path`. ValueError, naming the file, for others; OSError as by open."""
        try:
            return cls(_parents_in(read_json(Path(path))))
        except ValueError as error:
            raise ValueError(f"{path} holds no tree: {error}") from error

    def save(self, path: str | PathLike[str]) -> None:
        """Write the tree to `path` as JSON: {"parents": [-1, 0, …]}. OSError as from open."""
        Path(path).write_text(json.dumps({"parents": self.parents}) + "\n", encoding="utf-8")

    def __hash__(self) -> int:
        return hash(tuple(self.parents))

    @property
    def size(self) -> int:
        """Number of nodes, root included."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Depth of the deepest node; 0 for the root alone."""
        return int(self.depth_array.max())

    @property
    def parent_array(self) -> Ints:
        """`parents` as int64 [size]."""
        return self._parent_array

    @cached_property
    def depth_array(self) -> Ints:
        """`depths` as int64 [size]."""
        return _steps_to_root(self.parent_array.clip(min=0))

    @cached_property
    def child_count_array(self) -> Ints:
        """How many children each node has, int64 [size]."""
        return np.bincount(self.parent_array[1:], minlength=self.size)

    @cached_property
    def child_number_array(self) -> Ints:
        """`child_numbers` as int64 [size]."""
        numbers = np.zeros(self.size, dtype=np.int64)
        by_parent = self.by_parent
        earlier = self.first_places[self.parent_array[by_parent]]  # nodes listed before the first of its siblings
        numbers[by_parent] = np.arange(1, self.size) - earlier
        return numbers

    @cached_property
    def post_order(self) -> Ints:
        """All nodes, int64 [size]: every subtree before its root, siblings in drawing order, so the root last."""
        order = np.empty(self.size, dtype=np.int64)
        order[self._post_places] = np.arange(self.size)
        return order

    @cached_property
    def depths(self) -> list[int]:
        """Distance of each node from the root."""
        return self.depth_array.tolist()

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
        return self.child_number_array.tolist()

    @cached_property
    def levels(self) -> list[list[int]]:
        """The nodes at each depth; levels[0] is [0]."""
        levels: list[list[int]] = [[] for _ in range(self.depth + 1)]
        for node, depth in enumerate(self.depths):
            levels[depth].append(node)
        return levels

    def path(self, node: int) -> list[int]:
        """The nodes on the path from the root (excluded) to `node`."""
        path: list[int] = []
        while node > 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """bool [size, size]: entry (i, j) is true if j is i or an ancestor of i, that is, if i attends to j."""
        return self._ancestors

    @cached_property
    def _ancestors(self) -> NDArray[np.bool_]:
        """Cached: a static tree is scored in every pass. Gathers bits, not bytes, since gathering is the slow part."""
        bits = np.packbits(np.eye(self.size, dtype=np.bool_), axis=1)
        further = self.parent_array.clip(min=0)
        while further.any():  # each round doubles the number of generations that are covered
            bits |= bits[further]
            further = further[further]
        bits |= bits[further]
        return np.unpackbits(bits, axis=1, count=self.size).view(np.bool_)

    @cached_property
    def by_parent(self) -> Ints:
        """The nodes without the root, int64 [size - 1], siblings side by side in drawing order."""
        return np.argsort(self.parent_array[1:], kind="stable") + 1

    @cached_property
    def first_places(self) -> Ints:
        """The index in `by_parent` at which each node's children begin, int64 [size]."""
        return np.cumsum(self.child_count_array) - self.child_count_array

    @cached_property
    def _first_leaves(self) -> Ints:
        """The leaf reached from each node through first children only, int64 [size]; for a leaf, itself."""
        leaves = np.arange(self.size)
        inner = self.child_count_array > 0
        leaves[inner] = self.by_parent[self.first_places[inner]]
        while not np.array_equal(further := leaves[leaves], leaves):
            leaves = further
        return leaves

    @cached_property
    def _post_places(self) -> Ints:
        """Position of each node in the post-order, int64 [size]."""
        following = self.parent_array.clip(min=0)
        siblings = self.by_parent
        later = siblings[1:]
        have_later = self.parent_array[siblings[:-1]] == self.parent_array[later]
        following[siblings[:-1][have_later]] = self._first_leaves[later[have_later]]
        return self.size - 1 - _steps_to_root(following)

    def prune(self, alive: Sequence[bool]) -> tuple[Tree, list[int]]:
        """(the tree of the nodes that are alive with all their ancestors, `kept`: their ids in this tree).

        `alive` holds one truth value per node; the root's must be true. Node i of the new tree is node kept[i] of this
        one; ids are increasing. Pruning by the *value* of a drawn token biases every ratio test; prune only slots for
        which no token could be drawn.
        """
        if len(alive) != self.size or not alive[0]:
            raise ValueError(f"alive needs one value for each of {self.size} nodes, true for the root; got {alive!r}")
        new_ids = {-1: -1}
        for node, parent in enumerate(self.parents):
            if alive[node] and parent in new_ids:
                new_ids[node] = len(new_ids) - 1
        kept = list(new_ids)[1:]
        return Tree(new_ids[self.parents[node]] for node in kept), kept


def _checked(parents: list[int]) -> Ints:
    """`parents` as an array. ValueError if they form no tree."""
    if not parents:
        raise ValueError("a tree has at least a root; got no parents")
    if parents[0] != -1:
        raise ValueError(f"parents[0] is the root's and must be -1, got {_shown(parents[0])}")
    try:
        array = np.array(parents, dtype=np.int64)
    except OverflowError:  # beyond 64 bits, so out of range in any case
        array = np.array([max(-2, min(parent, len(parents))) for parent in parents])
    wrong = (array < 0) | (array >= np.arange(len(parents)))
    wrong[0] = False
    if wrong.any():
        node = int(wrong.argmax())
        raise ValueError(f"parents[{node}] must be an earlier node, 0 to {node - 1}, got {_shown(parents[node])}")
    return array


def _steps_to_root(following: Ints) -> Ints:
    """How many steps node -> following[node] lead from each node to node 0, which follows itself.

    Each round doubles the steps looked ahead, so a chain takes at most log2(size) rounds.
    """
    steps = np.ones_like(following)
    steps[0] = 0
    while following.any():
        steps += steps[following]
        following = following[following]
    return steps


def read_json(path: Path) -> object:
    """The content of a JSON file. ValueError if it is not JSON or larger than any tree; OSError as from open."""
    if path.is_fifo() or path.is_char_device():  # opening or reading these may block forever
        raise ValueError("it is not a regular file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any tree of {_MOST_NODES:,} nodes")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("its brackets nest too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error


def _parents_in(content: object) -> list[int]:
    """The value of "parents" in `content`. ValueError unless it is a list of at most `_MOST_NODES` integers."""
    if not isinstance(content, dict) or "parents" not in content:
        raise ValueError('it must be an object with the key "parents", such as {"parents": [-1, 0, 0]}')
    parents = content["parents"]
    if not isinstance(parents, list):
        raise ValueError(f'"parents" must be a list of integers, got {_shown(parents)}')
    if len(parents) > _MOST_NODES:
        raise ValueError(f"it has {len(parents):,} nodes; at most {_MOST_NODES:,} are read")
    for node, parent in enumerate(parents):
        if type(parent) is not int:  # True is an int to isinstance
            raise ValueError(f"parents[{node}] must be an integer, got {_shown(parent)}")
    return parents


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
