import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import DEFAULT_ACCEPTANCE, Tree, best_chains, chain, chains, expected_tokens, k_ary, optimal_tree


def test_chains_by_hand():
    assert chains(2, 3).parents == [-1, 0, 0, 1, 2, 3, 4]
    assert chains(3, 1).parents == [-1, 0, 0, 0]
    assert chains(1, 5) == chain(6)


@pytest.mark.parametrize(("count", "length"), [(16, 48), (48, 16), (3, 2)])
def test_chains_are_independent_and_equally_long(count, length):
    tree = chains(count, length)
    assert tree.size == count * length + 1
    assert tree.child_count_array[0] == count and tree.child_count_array[1:].max() == 1
    assert [tree.depths[node] for node in range(tree.size) if not tree.children[node]] == [length] * count


def test_k_ary_by_hand():
    assert k_ary(2, 6).parents == [-1, 0, 0, 1, 1, 2]
    assert k_ary(3, 100, 1).parents == [-1, 0, 0, 0]
    assert k_ary(1, 5) == chain(5) and k_ary(1, 50, 4) == chain(5)
    assert k_ary(4, 1) == k_ary(4, 9, 0) == Tree([-1])


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 400), st.none() | st.integers(0, 8))
def test_k_ary_is_filled_level_by_level(children, size, max_depth):
    tree = k_ary(children, size, max_depth)
    assert tree.depths == sorted(tree.depths)
    full = [children**depth for depth in range(tree.depth)]
    assert [len(level) for level in tree.levels[:-1]] == full and len(tree.levels[-1]) <= children**tree.depth
    assert max(tree.child_numbers) <= children
    if tree.size != size:
        assert tree.size == sum(children**depth for depth in range(max_depth + 1)) < size
    assert max_depth is None or tree.depth <= max_depth


weights = st.lists(st.integers(0, 20), min_size=1, max_size=12)
vectors = st.tuples(weights, st.integers(0, 20)).map(lambda w: np.array(w[0]) / max(1, sum(w[0]) + w[1]))


def check_best_chains(acceptance, size, max_depth):
    depth = size - 1 if max_depth is None else max_depth
    candidates = [Tree([-1])]
    for count in range(1, size):
        length = min((size - 1) // count, depth)
        candidates += [chains(count, length)] if length else []
    tree = best_chains(acceptance, size, max_depth)
    assert tree in candidates
    best = max(expected_tokens(candidate, acceptance) for candidate in candidates)
    assert expected_tokens(tree, acceptance) == pytest.approx(best)
    assert best <= expected_tokens(optimal_tree(acceptance, size, max_depth), acceptance) + 1e-9


@settings(deadline=None, max_examples=50)
@given(vectors, st.integers(1, 60), st.none() | st.integers(0, 9))
def test_best_chains_against_every_count(acceptance, size, max_depth):
    check_best_chains(acceptance, size, max_depth)


@pytest.mark.parametrize("acceptance", [(0.5, 0.3, 0.1, 0.1), (0.9, 0.05, 0.05), (0.1, 0.4, 0.0, 0.5)])
def test_best_chains_at_every_small_size(acceptance):
    for size in range(1, 18):
        for max_depth in (None, 0, 1, 2, 5):
            check_best_chains(acceptance, size, max_depth)


def test_equally_good_chains_are_few_and_long():
    assert best_chains([0.0], 10) == chain(10)
    assert best_chains([0.5, 0.5, 0.0, 0.0], 5, 1) == chains(2, 1)


def test_the_best_tree_beats_the_baselines_at_the_published_size():
    best = expected_tokens(optimal_tree(DEFAULT_ACCEPTANCE, 769), DEFAULT_ACCEPTANCE)
    others = [chains(16, 48), best_chains(DEFAULT_ACCEPTANCE, 769), chain(769), *(k_ary(k, 769) for k in (2, 3, 4))]
    tokens = [expected_tokens(tree, DEFAULT_ACCEPTANCE) for tree in others]
    assert max(tokens) < 0.75 * best and tokens[1] > tokens[0] > tokens[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chains(0, 3), "got 0 of 3"),
        (lambda: chains(3, 0), "got 3 of 0"),
        (lambda: k_ary(0, 3), "at least 1 child, got 0"),
        (lambda: k_ary(2, 0), "size counts the root and must be at least 1, got 0"),
        (lambda: k_ary(2, 3, -1), "max_depth must be 0 or more, or None"),
        (lambda: best_chains([0.5], 0), "at least 1, got 0"),
        (lambda: best_chains([0.5], 5, -2), "max_depth must be 0 or more.* got -2"),
        (lambda: best_chains([0.7, 0.7], 5), "sums to at most 1"),
        (lambda: best_chains([], 5), "at least one number"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
