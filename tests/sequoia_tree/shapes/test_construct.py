import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import DEFAULT_ACCEPTANCE, Tree, chain, expected_tokens, optimal_tree
from sequoia_tree.shapes import tree_knapsack as knapsack
from sequoia_tree.shapes.construct import best_first, expected_reach
from tests.sequoia_tree.shapes.dynamic_program import dynamic_program

# The whole vector that the paper prints; its tail goes up and down.
PUBLISHED = [
    *DEFAULT_ACCEPTANCE,
    *(0.0007, 0.0006, 0.0004, 0.0004, 0.0005, 0.0006, 0.0004, 0.0003, 0.0002, 0.0004, 0.0001),
]


def trees_of(size):
    """Every ordered tree of `size` nodes, as the depths that a walk down and to the right meets."""
    walks = [[0]]
    for _ in range(size - 1):
        walks = [[*walk, depth] for walk in walks for depth in range(1, walk[-1] + 2)]
    for walk in walks:
        yield Tree(max((i for i in range(node) if walk[i] == walk[node] - 1), default=-1) for node in range(size))


TREES = [tree for size in range(1, 9) for tree in trees_of(size)]


def brute_force(acceptance, size, max_depth, max_children):
    fitting = (
        tree
        for tree in TREES
        if tree.size <= size and tree.depth <= max_depth and max(tree.child_numbers) <= max_children
    )
    return max(expected_tokens(tree, acceptance) for tree in fitting)


def reach_by_walking(tree, acceptance):
    chances = [*acceptance, *[0.0] * tree.size]
    return [math.prod(chances[tree.child_numbers[step] - 1] for step in tree.path(node)) for node in range(tree.size)]


def vectors(max_children=5):
    """Acceptance vectors in any order, with zeros among them."""
    weights = st.lists(st.integers(0, 20), min_size=1, max_size=max_children)
    return st.tuples(weights, st.integers(0, 20)).map(lambda w: np.array(w[0]) / max(1, sum(w[0]) + w[1]))


def test_brute_force_sees_every_ordered_tree():
    catalan = [math.comb(2 * n, n) // (n + 1) for n in range(8)]
    assert [sum(tree.size == size for tree in TREES) for size in range(1, 9)] == catalan


@settings(max_examples=40, deadline=None)
@given(vectors(), st.integers(1, 8), st.integers(0, 7), st.integers(0, 7))
def test_optimal_against_every_tree(acceptance, size, max_depth, max_children):
    best = brute_force(acceptance, size, max_depth, max_children)
    tree = optimal_tree(acceptance, size, max_depth, max_children)
    assert tree.size <= size and tree.depth <= max_depth and max(tree.child_numbers) <= max_children
    assert expected_tokens(tree, acceptance) == pytest.approx(best)
    by_program = dynamic_program(acceptance[:max_children], size, max_depth)
    assert expected_tokens(by_program, acceptance) == pytest.approx(best)


@pytest.mark.parametrize("acceptance", [(0.6, 0.2, 0.1, 0.05), (0.1, 0.5, 0.0, 0.4), (0.5, 0.5), (0.0, 1.0)])
def test_optimal_under_every_limit(acceptance):
    for size, max_depth, max_children in itertools.product((5, 8), range(8), range(5)):
        best = brute_force(acceptance, size, max_depth, max_children)
        tree = optimal_tree(acceptance, size, max_depth, max_children)
        assert expected_tokens(tree, acceptance) == pytest.approx(best), (size, max_depth, max_children)


@settings(deadline=None)
@given(vectors(), st.lists(st.integers(0, 10**6), max_size=40))
def test_expected_reach_against_walking_down(acceptance, choices):
    tree = Tree([-1, *(choice % node for node, choice in enumerate(choices, 1))])
    expected = reach_by_walking(tree, acceptance)
    assert expected_reach(tree, acceptance) == pytest.approx(expected)
    assert expected_tokens(tree, acceptance) == pytest.approx(sum(expected))


@settings(max_examples=40, deadline=None)
@given(vectors(8), st.integers(1, 60), st.integers(0, 9))
def test_best_first_equals_the_dynamic_program_for_falling_vectors(acceptance, size, max_depth):
    falling = np.sort(acceptance)[::-1]
    trees = best_first(falling, size, max_depth), dynamic_program(falling, size, max_depth)
    assert expected_tokens(trees[0], falling) == pytest.approx(expected_tokens(trees[1], falling))


@settings(max_examples=60, deadline=None)
@given(vectors(8), st.integers(1, 60), st.none() | st.integers(0, 6), st.none() | st.integers(0, 6))
def test_limits_and_order(acceptance, size, max_depth, max_children):
    tree = optimal_tree(acceptance, size, max_depth, max_children)
    assert tree.size <= size
    assert tree.depth <= (size if max_depth is None else max_depth)
    assert max(tree.child_numbers) <= (len(acceptance) if max_children is None else max_children)
    keys = list(zip(tree.depths, tree.parents, tree.child_numbers))
    assert keys == sorted(keys)


def test_best_first_is_not_optimal_when_a_later_child_is_likelier():
    acceptance = np.array([0.4, 0.1, 0.5])
    assert expected_tokens(optimal_tree(acceptance, 4), acceptance) == pytest.approx(2.0)
    assert expected_tokens(best_first(acceptance, 4, 3), acceptance) == pytest.approx(1.66)


@pytest.mark.parametrize(("size", "published"), [(768, 8.3), (2048, 9.3)])
def test_published_tokens_per_pass(size, published):
    assert published <= expected_tokens(optimal_tree(DEFAULT_ACCEPTANCE, size), DEFAULT_ACCEPTANCE) < published + 0.1


def test_large_trees_take_milliseconds():
    start = time.process_time()
    tree = optimal_tree([*DEFAULT_ACCEPTANCE, *[0.0005] * 12], 4096, max_depth=64)
    assert time.process_time() - start < 1
    assert tree.size == 4096


CONSTANTS = st.sampled_from([(1, 1, 0), (3, 2, 0), (8, 5, 0), (128, 20, 64)])


def in_full(tree, acceptance):
    return pytest.approx(expected_tokens(tree, acceptance), rel=1e-12, abs=0)


@settings(max_examples=60, deadline=None)
@given(
    vectors(8),
    st.integers(1, 90),
    st.integers(0, 12),
    CONSTANTS,
)
def test_the_knapsack_equals_the_dynamic_program(acceptance, size, max_depth, constants):
    with pytest.MonkeyPatch.context() as patch:  # small ones: most first cores are refused, and bounds are all there is
        for name, constant in zip(("_EXACT", "_LEVELS", "_SPARE"), constants):
            patch.setattr(knapsack, name, constant)
        tree = knapsack.tree_knapsack(acceptance, size, max_depth)
    assert tree.size <= size and tree.depth <= max_depth and max(tree.child_numbers) <= len(acceptance)
    assert expected_tokens(tree, acceptance) == in_full(dynamic_program(acceptance, size, max_depth), acceptance)


# Hard ones: the best child is the last, or comes after many that are useless, or all are nearly the same.
HARD = {
    "published": PUBLISHED,
    "reversed": [*reversed(DEFAULT_ACCEPTANCE)],
    "late": [0.001] * 31 + [0.969],
    "gap": [0.9] + [0.0] * 30 + [0.1],
    "ties": [0.25, 0.75],
    "steps": [0.3, 0.0, 0.3, 0.0, 0.3, 0.0, 0.1],
}


@pytest.mark.parametrize("name", HARD)
def test_hard_vectors_against_the_dynamic_program(name):
    acceptance = np.array(HARD[name])
    for size, max_depth in ((50, 49), (100, 6)):
        tree = optimal_tree(acceptance, size, max_depth)
        assert expected_tokens(tree, acceptance) == in_full(dynamic_program(acceptance, size, max_depth), acceptance)


@pytest.mark.parametrize("name", HARD)
def test_work_for_large_trees_is_a_fraction_of_the_dynamic_programs(name):
    """4,096 nodes, 64 deep: additions of all merges against size² / 2 · depth · children."""
    acceptance = np.array(HARD[name])
    core = knapsack.proven_core(acceptance, 4096, 64)
    assert len(core.reach) <= 3 * 4096
    additions = sum(math.prod(map(len, core.below(slot))) for slot in range(len(core.reach)))
    assert additions < 4096**2 / 2 * 64 * len(acceptance) / 40


def test_a_core_without_its_proof_would_miss_the_best_tree(monkeypatch):
    acceptance = np.array([0.0, 0.18, 0.18, 0.55, 0.09])
    monkeypatch.setattr(knapsack, "_SPARE", 0)
    best = expected_tokens(dynamic_program(acceptance, 33, 8), acceptance)
    assert expected_tokens(knapsack.tree_knapsack(acceptance, 33, 8), acceptance) == pytest.approx(best)
    monkeypatch.setattr(knapsack, "_is_enough", lambda *_: True)
    assert expected_tokens(knapsack.tree_knapsack(acceptance, 33, 8), acceptance) < best - 0.01


def test_the_tail_of_the_published_vector_adds_tokens():
    tokens = [expected_tokens(optimal_tree(vector, 4096, 64), PUBLISHED) for vector in (PUBLISHED, DEFAULT_ACCEPTANCE)]
    assert tokens[0] > tokens[1]


def test_nodes_without_a_chance_are_left_out():
    assert optimal_tree([0.0, 0.0], 10).parents == [-1]
    assert optimal_tree([0.5, 0.25, 0.0], 10, max_depth=1).parents == [-1, 0, 0]
    assert optimal_tree([0.5], 10).parents == chain(10).parents
    assert optimal_tree([0.0, 0.5], 3, max_depth=1).parents == [-1, 0, 0]  # the second child needs the first


def test_expected_tokens_by_hand():
    tree = Tree([-1, 0, 0, 1, 2, 0])
    assert expected_tokens(tree, [0.6, 0.3]) == pytest.approx(1 + 0.6 + 0.3 + 0.36 + 0.18)
    assert expected_tokens(chain(4), [0.5]) == pytest.approx(1.875)
    assert expected_tokens(chain(1), [0.5]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4), "at least one number"),
        (([[0.5]], 4), "shape"),
        (([0.5, -0.1], 4), "not negative"),
        (([0.5, math.nan], 4), "finite"),
        (([0.8, 0.3], 4), "sums to at most 1, got 1.1"),
        (([0.5], 0), "at least 1, got 0"),
        (([0.5], 4, -1), "max_depth must be 0 or more"),
        (([0.5], 4, None, -1), "max_children must be 0 or more"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimal_tree(*arguments)


def test_expected_tokens_and_chain_check_theirs():
    with pytest.raises(ValueError, match="sums to at most 1"):
        expected_tokens(chain(2), [0.8, 0.3])
    with pytest.raises(ValueError, match="at least a root"):
        chain(0)


def test_a_vector_rounded_to_float32_is_fine():
    optimal_tree(np.full(10, 0.1, dtype=np.float32), 4)
