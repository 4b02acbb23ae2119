import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import Tree


@st.composite
def trees(draw, max_size=30):
    size = draw(st.integers(1, max_size))
    return Tree([-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))])


def path_to_root(tree, node):
    return [] if node < 0 else [node, *path_to_root(tree, tree.parents[node])]


@settings(deadline=None)
@given(trees())
def test_what_a_tree_derives_from_its_parents(tree):
    for node in range(tree.size):
        assert tree.depths[node] == len(path_to_root(tree, node)) - 1
        assert all(tree.parents[child] == node for child in tree.children[node])
        assert tree.children[node] == sorted(tree.children[node])
        assert node in tree.levels[tree.depths[node]]
        if node:
            assert tree.children[tree.parents[node]][tree.child_numbers[node] - 1] == node
    assert tree.child_numbers[0] == 0
    assert tree.levels[0] == [0] and sum(map(len, tree.levels)) == tree.size
    assert tree.depth == len(tree.levels) - 1 == max(tree.depths)


def post_order_of(tree, node):
    return [*(below for child in tree.children[node] for below in post_order_of(tree, child)), node]


def check_arrays(tree):
    parents = tree.parents
    expected = {
        "parent_array": parents,
        "depth_array": [len(path_to_root(tree, node)) - 1 for node in range(tree.size)],
        "child_count_array": [parents.count(node) for node in range(tree.size)],
        "child_number_array": [0, *(parents[: node + 1].count(parents[node]) for node in range(1, tree.size))],
        "post_order": post_order_of(tree, 0),
    }
    for name, values in expected.items():
        array = getattr(tree, name)
        assert array.dtype == np.int64 and array.tolist() == values, name
        assert getattr(tree, name) is array, f"{name} is made anew each time"


@settings(deadline=None)
@given(trees(60))
def test_arrays_against_slow_and_obvious_code(tree):
    check_arrays(tree)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64, 65])
def test_arrays_and_mask_of_the_longest_and_the_widest_trees(size):
    for tree in (Tree(range(-1, size - 1)), Tree([-1] + [0] * (size - 1))):
        check_arrays(tree)
        assert tree.ancestor_mask().tolist() == naive_mask(tree)


def test_lists_hold_plain_integers():
    tree = Tree(np.array([-1, 0, 1, 1]))
    for numbers in (tree.parents, tree.depths, tree.child_numbers, *tree.children, *tree.levels, [tree.depth]):
        assert all(type(number) is int for number in numbers)


def naive_mask(tree):
    return [[j in path_to_root(tree, i) for j in range(tree.size)] for i in range(tree.size)]


@settings(deadline=None)
@given(trees())
def test_ancestor_mask_against_walking_up(tree):
    mask = tree.ancestor_mask()
    assert mask.dtype == np.bool_
    assert mask.tolist() == naive_mask(tree)


@settings(deadline=None)
@given(trees(), st.data())
def test_prune_keeps_what_is_alive_up_to_the_root(tree, data):
    alive = [True, *data.draw(st.lists(st.booleans(), min_size=tree.size - 1, max_size=tree.size - 1))]
    pruned, kept = tree.prune(alive)
    assert kept == [node for node in range(tree.size) if all(alive[a] for a in path_to_root(tree, node))]
    assert [kept[parent] for parent in pruned.parents[1:]] == [tree.parents[node] for node in kept[1:]]


def test_prune_wants_one_value_per_node_and_the_root():
    tree = Tree([-1, 0])
    for alive in ([True], [False, True]):
        with pytest.raises(ValueError, match="alive"):
            tree.prune(alive)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], "at least a root"),
        ([0], r"parents\[0\]"),
        ([-1, -1], r"parents\[1\]"),
        ([-1, 1], r"parents\[1\]"),
        ([-1, 0, 3], r"parents\[2\].*0 to 1, got 3"),
        ([-1, 0, -2, 9], r"parents\[2\].*0 to 1, got -2"),
        ([-1, 0, 10**30], r"parents\[2\].*0 to 1, got 10{30}$"),
        ([-1, 0, -(10**30)], r"parents\[2\].*0 to 1, got -10{30}$"),
        ([-(10**30), 0], r"parents\[0\].* got -10{30}$"),
    ],
)
def test_parents_that_form_no_tree_are_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        Tree(parents)


def test_a_tree_is_a_frozen_value():
    parents = [-1, 0, 0]
    tree = Tree(parents)
    parents.append(7)
    assert tree.parents == [-1, 0, 0] and type(tree.parents) is list
    assert tree == Tree(np.array([-1, 0, 0])) and hash(tree) == hash(Tree([-1, 0, 0])) and tree != Tree([-1, 0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.parents = [-1]


def test_trees_need_no_torch():
    code = "import sys, sequoia_tree; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
