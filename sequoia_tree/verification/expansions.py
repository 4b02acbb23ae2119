"""Which children of a tree are tested side by side: index arithmetic on the host, and one upload."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sequoia_tree.tree import Ints, Tree
from sequoia_tree.uploads import upload_together


@dataclass(frozen=True)
class Indices:
    """Index tensors of `Expansions`: int64, for n nodes, of which R are parents, and J children.

    parents [R]: nodes with children, rising. children [R, most children]: in drawing order, 0 beyond the last.
    Of each child, [J], in the order of the tests: child and parent, the nodes; row, the parent's index in `parents`;
    cell, the child's in `children`, flattened; own_row, the child's index in `parents`, R for leaves; source, the state
    in which it is tested, counted from the first state of the expansion step before.
    opened [states]: index in `parents` of the node whose children a state is opened for, R for other states.
    last [n]: the state in which all children of a node are rejected; for leaves, one in which nothing is.
    test [n]: of each node, J for the root. outcome [n]: J + its index in `parents`, or for leaves its test.
    post_order [n]: as of the tree.
    """

    parents: Tensor
    children: Tensor
    child: Tensor
    parent: Tensor
    row: Tensor
    cell: Tensor
    own_row: Tensor
    source: Tensor
    opened: Tensor
    last: Tensor
    test: Tensor
    outcome: Tensor
    post_order: Tensor


@dataclass(frozen=True)
class Expansions:
    """The children of a tree in the order of their tests: expansion step t is `tests[t]` to `tests[t + 1]`.

    A test needs what the earlier siblings leave and, if weights are handed on, the result of the parent's own test. So
    the number of expansion steps is that of the nodes and their earlier siblings on the longest path, not of all nodes.

    Each test leaves a state; where weights are handed on it also opens one, in which the child's own children begin.
    The states of expansion step t are `states[t]` to `states[t + 1]`, those it leaves first. Before them all lies one
    for each parent, opened with full weight.
    """

    tests: list[int]
    states: list[int]
    depth: int
    rows: list[int]  # `at.row` on the host
    at: Indices

    @classmethod
    def of(cls, tree: Tree, hand_on: bool, device: torch.device) -> Expansions:
        """For a tree with children. hand_on: whether they begin with the weight that their parent's test gave it."""
        parents = np.flatnonzero(tree.child_count_array)
        row_of = np.full(tree.size, len(parents))
        row_of[parents] = np.arange(len(parents))
        expansion_of = _expansions(tree, hand_on)
        order = 1 + np.argsort(expansion_of[1:], kind="stable")  # the children, by their tests
        expansion, parent = expansion_of[order], tree.parent_array[order]
        tests = np.searchsorted(expansion, np.arange(expansion[-1] + 2))
        test = np.full(tree.size, len(order))
        test[order] = np.arange(len(order))
        states = len(parents) + tests * (2 if hand_on else 1)
        left = states[expansion] + np.arange(len(order)) - tests[expansion]  # the state that each test leaves
        opened = np.concatenate((np.arange(len(parents)), np.full(states[-1] - len(parents), len(parents))))
        begun = np.where(tree.child_number_array[order] > 1, left[test[_earlier(tree)[order]]], row_of[parent])
        if hand_on:
            opens = left + np.diff(tests)[expansion]
            opened[opens] = row_of[order]
            inherits = (tree.child_number_array[order] == 1) & (parent > 0)
            begun[inherits] = opens[test[parent[inherits]]]
        last = np.zeros(tree.size, dtype=np.int64)
        last[parents] = left[test[tree.by_parent[tree.first_places[parents] + tree.child_count_array[parents] - 1]]]
        children = _children(tree, parents)
        arrays = {
            "parents": parents,
            "children": children,
            "child": order,
            "parent": parent,
            "row": row_of[parent],
            "cell": row_of[parent] * children.shape[1] + tree.child_number_array[order] - 1,
            "own_row": row_of[order],
            "source": begun - np.concatenate(([0], states))[expansion],
            "opened": opened,
            "last": last,
            "test": test,
            "outcome": np.where(row_of < len(parents), len(order) + row_of, test),
            "post_order": tree.post_order,
        }
        at = Indices(*upload_together([arrays[field.name] for field in fields(Indices)], device))
        return cls(tests.tolist(), states.tolist(), tree.depth, row_of[parent].tolist(), at)


def _expansions(tree: Tree, hand_on: bool) -> Ints:
    """The expansion step in which each node is tested, int64 [n]; -1 for the root.

    Each round doubles the path that is summed.
    """
    if not hand_on:
        return tree.child_number_array - 1
    expansions, above = tree.child_number_array.copy(), tree.parent_array.clip(min=0)
    while above.any():
        expansions += expansions[above]
        above = above[above]
    return expansions - 1


def _earlier(tree: Tree) -> Ints:
    """The sibling before each node, int64 [n]; some other child for first children."""
    earlier = np.full(tree.size, tree.by_parent[0])
    earlier[tree.by_parent[1:]] = tree.by_parent[:-1]
    return earlier


def _children(tree: Tree, parents: Ints) -> Ints:
    """int64 [R, most children]: the children of each, 0 beyond the last."""
    counts, first = tree.child_count_array[parents, None], tree.first_places[parents, None]
    columns = np.arange(counts.max())
    present = columns < counts
    return np.where(present, tree.by_parent[np.where(present, first + columns, 0)], 0)
