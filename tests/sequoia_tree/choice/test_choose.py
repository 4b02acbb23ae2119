import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sequoia_tree import DEFAULT_ACCEPTANCE, expected_tokens, optimal_tree
from sequoia_tree.choice.choose import Choice, Chooser, Correction, Yield, choose, damped, enough_depth, reach_by_size
from sequoia_tree.choice.pass_times import PassTimes

STATIC = {"static": Yield(DEFAULT_ACCEPTANCE)}
BOTH = {"static": Yield(DEFAULT_ACCEPTANCE), "adaptive": Yield(tuple(damped(DEFAULT_ACCEPTANCE)))}


def flat(seconds):
    return lambda rows: seconds


def linear(fixed, per_row):
    return lambda rows: fixed + per_row * rows


def falling_vectors(max_children=6):
    """Acceptance vectors that never increase, equal entries and zeros among them."""
    weights = st.lists(st.integers(0, 9), min_size=1, max_size=max_children)
    return st.tuples(weights, st.integers(0, 9)).map(
        lambda w: tuple(weight / max(1, sum(w[0]) + w[1]) for weight in sorted(w[0], reverse=True))
    )


def predicted(method, yielded, pass_seconds, level_seconds, size, depth):
    """(tokens, seconds) of one size and depth, from the tree itself."""
    tree = optimal_tree(yielded.acceptance, size, depth)
    tokens = min(1 + yielded.factor * (expected_tokens(tree, yielded.acceptance) - 1), depth + 1, size)
    if method == "adaptive":
        width = max(1, (size - 1) // max(1, depth - 1))
        return tokens, pass_seconds(size) + level_seconds(1) + (depth - 1) * level_seconds(width)
    rows = [sum(bool(tree.children[node]) for node in level) for level in tree.levels]
    return tokens, pass_seconds(size) + sum(level_seconds(n) for n in rows if n)


def deepest(acceptance, size, max_depth):
    """The depth limit from which on a deeper one brings the largest tree nothing: none beyond it is considered."""
    tokens = [expected_tokens(optimal_tree(acceptance, size, depth), acceptance) for depth in range(max_depth + 1)]
    return next((depth for depth in range(max_depth) if tokens[depth + 1] <= tokens[depth] + 1e-12), max_depth)


@settings(max_examples=60, deadline=None)
@given(
    falling_vectors(),
    st.sampled_from(["static", "adaptive"]),
    st.floats(0.1, 2),
    st.tuples(st.floats(0.01, 1), st.floats(0, 0.1), st.floats(0, 0.2), st.floats(0, 0.05)),
    st.integers(1, 30),
    st.integers(0, 7),
)
# Narrower expansion steps would be cheaper for no gain.
@example((0.5, 0.5), "adaptive", 1.0, (1.0, 0.0, 0.0, 0.03125), 4, 3)
def test_choice_against_every_size_and_depth(acceptance, method, factor, costs, max_size, max_depth):
    passes, levels = linear(*costs[:2]), linear(*costs[2:])
    yielded = Yield(acceptance, factor)
    sizes = range(2, max_size + 1)
    every = {
        (size, depth): predicted(method, yielded, passes, levels, size, depth)
        for size in sizes
        for depth in range(1, deepest(acceptance, max_size, max_depth) + 1)
    }
    fastest = min([passes(1), *(seconds / tokens for tokens, seconds in every.values())])
    choice = choose({method: yielded}, passes, levels, max_size, max_depth, sizes)
    assert fastest * (1 - 1e-9) <= choice.seconds_per_token <= fastest * 1.01 * (1 + 1e-9)
    smaller = [seconds / tokens for (size, _), (tokens, seconds) in every.items() if size < choice.size]
    assert choice.size == 1 or min([passes(1), *smaller]) > fastest * 1.01 * (1 - 1e-9)
    if choice.size > 1:
        expected = every[choice.size, choice.depth]
        assert (choice.tokens_per_pass, choice.seconds_per_pass) == pytest.approx(expected)
        uncorrected = predicted(method, Yield(acceptance), passes, levels, choice.size, choice.depth)
        assert choice.uncorrected_tokens == pytest.approx(uncorrected[0])
    else:
        assert (choice.method, choice.depth, choice.tokens_per_pass) == ("none", 0, 1)


@settings(max_examples=40, deadline=None)
@given(falling_vectors(), st.integers(1, 40), st.integers(0, 8))
def test_reach_against_the_best_tree_of_each_size(acceptance, size, max_depth):
    best = [expected_tokens(optimal_tree(acceptance, n, max_depth), acceptance) for n in range(1, size + 1)]
    np.testing.assert_allclose(reach_by_size(acceptance, size, max_depth), best, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.permutations([0.35, 0.3, 0.15, 0.1, 0.0]), st.integers(1, 16), st.integers(0, 5))
def test_reach_of_any_vector_is_at_most_what_the_best_tree_has(acceptance, size, max_depth):
    best = expected_tokens(optimal_tree(acceptance, size, max_depth), acceptance)
    assert reach_by_size(acceptance, size, max_depth)[-1] <= best + 1e-12


@settings(max_examples=40, deadline=None)
@given(falling_vectors(), st.integers(1, 40), st.integers(0, 12))
def test_enough_depth_is_the_least_that_brings_nearly_all(acceptance, size, max_depth):
    depth = enough_depth(acceptance, size, max_depth)
    tokens = [reach_by_size(acceptance, size, levels)[-1] for levels in range(max_depth + 1)]
    assert tokens[depth] >= 0.97 * tokens[-1] - 1e-9
    assert depth == 0 or tokens[depth - 1] < 0.97 * tokens[-1] + 1e-9


def test_enough_depth_follows_the_acceptance():
    depths = [enough_depth(damped([first, (1 - first) / 2]), 512) for first in (0.5, 0.75, 0.9, 0.95, 0.999)]
    assert depths == sorted(depths) and depths[0] < 12 and depths[-1] > 180
    assert enough_depth([0.999], 512, 7) == 7


def test_reach_at_the_published_sizes():
    reach = reach_by_size(DEFAULT_ACCEPTANCE, 2048, 2047)
    assert 8.3 <= reach[767] < 8.4
    assert 9.3 <= reach[2047] < 9.4


def test_a_machine_bound_by_its_link_takes_a_large_and_deep_tree():
    choice = choose(STATIC, flat(4.0), flat(0.002), 768, 64)
    assert choice.size >= 512
    assert choice.depth >= 12
    assert choice.seconds_per_token < 0.52


def test_a_machine_bound_by_computing_decodes_plainly():
    choice = choose(BOTH, linear(0.0, 0.01), flat(1e-5), 768, 64)
    assert (choice.method, choice.size, choice.depth, choice.seconds_per_token) == ("none", 1, 0, 0.01)


def test_a_slow_draft_takes_a_shallow_tree():
    slow, quick = (choose(STATIC, flat(1.0), flat(seconds), 768, 64) for seconds in (0.8, 0.001))
    assert 1 <= slow.depth <= 4 < quick.depth
    assert choose(STATIC, flat(1.0), flat(10.0), 768, 64).method == "none"


def test_the_knee_of_the_pass_time_bounds_the_tree():
    choice = choose(STATIC, lambda rows: max(1.0, rows / 200), flat(0.001), 2048, 64)
    assert 128 <= choice.size <= 256


def test_the_better_method_is_taken_as_measured():
    assert choose(BOTH, flat(4.0), flat(0.002), 256, 64).method == "adaptive"
    corrected = {**BOTH, "adaptive": replace(BOTH["adaptive"], factor=0.5)}
    assert choose(corrected, flat(4.0), flat(0.002), 256, 64).method == "static"


def test_a_tree_that_gains_under_one_percent_is_not_taken():
    assert choose({"static": Yield((0.009,))}, flat(1.0), flat(0.0), 64, 8).method == "none"
    assert choose({"static": Yield((0.02,))}, flat(1.0), flat(0.0), 64, 8).size == 2
    assert choose({"static": Yield((0.5,))}, flat(1.0), flat(0.0), 768, 64).size <= 8  # a chain of 8: 1.992 of 2


def test_the_current_choice_is_kept_where_it_is_nearly_as_good():
    now = choose(STATIC, flat(4.0), flat(0.002), 768, 64)
    assert choose(STATIC, linear(4.0, 0.001), flat(0.002), 768, 64).size < now.size
    kept = choose(STATIC, linear(4.0, 0.001), flat(0.002), 768, 64, current=now)
    assert (kept.method, kept.size, kept.depth) == (now.method, now.size, now.depth)
    assert kept.seconds_per_pass > now.seconds_per_pass
    assert choose(STATIC, linear(0.0, 0.01), flat(0.002), 768, 64, current=now).method == "none"


@pytest.mark.parametrize("max_size", [1, 2, 3, 100, 768])
def test_sizes_by_default(max_size):
    asked = set()
    choose(STATIC, lambda rows: asked.add(rows) or 1.0, flat(0.0), max_size, 8)
    between = [n for k in range(11) for n in (2**k, 3 * 2**k // 2)]
    assert asked == {1, max_size, *(n for n in between if n <= max_size)}


@pytest.mark.parametrize(("max_size", "limit"), [(768, 0.03), (2048, 0.1)])
@pytest.mark.parametrize("acceptance", [DEFAULT_ACCEPTANCE, (0.97, *[0.001] * 20)])
def test_a_choice_takes_milliseconds(max_size, limit, acceptance):
    taken = []
    for share in (0.999, 0.998, 0.997):  # each vector is new, so nothing is cached
        yields = {"static": Yield(tuple(share * np.array(acceptance)))}
        started = time.process_time()
        choose(yields, linear(1.0, 0.001), linear(0.001, 0.00001), max_size, 64)
        taken.append(time.process_time() - started)
    assert min(taken) < limit


@given(falling_vectors(), st.floats(0.1, 1))
def test_damping_lifts_the_first_and_shares_the_rest_as_before(acceptance, power):
    vector = damped(acceptance, power)
    assert vector[0] == pytest.approx(acceptance[0] ** power)
    assert np.all(np.diff(vector) <= 1e-12)
    if acceptance[0] < 1:
        np.testing.assert_allclose(
            vector[1:] / (1 - vector[0] + 1e-300), np.array(acceptance[1:]) / (1 - acceptance[0])
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_size": 0}, "size counts the root and must be at least 1, got 0"),
        ({"max_depth": -1}, "max_depth must be 0 or more"),
        ({"sizes": [0, 4]}, "size counts the root and must be at least 1, got 0"),
        ({"yields": {"none": Yield((0.5,))}}, "names plain decoding"),
        ({"pass_seconds": flat(0.0)}, "a pass takes a positive time"),
        ({"pass_seconds": lambda rows: 1.0 if rows < 8 else math.nan}, "a pass takes a positive time"),
        ({"level_seconds": flat(-0.1)}, "a time of 0 or more"),
        ({"level_seconds": flat(math.inf)}, "a time of 0 or more"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    usual = {"yields": STATIC, "pass_seconds": flat(1.0), "level_seconds": flat(0.1), "max_size": 16, "max_depth": 4}
    with pytest.raises(ValueError, match=message):
        choose(**{**usual, **arguments})


def test_wrong_yields_and_powers_are_named():
    with pytest.raises(ValueError, match="sums to at most 1"):
        Yield((0.8, 0.3))
    with pytest.raises(ValueError, match=r"factor must be 0 or more, got -0\.5"):
        Yield((0.8,), -0.5)
    with pytest.raises(ValueError, match="power must be above 0"):
        damped([0.5], 0)
    with pytest.raises(ValueError, match="size counts the root"):
        reach_by_size([0.5], 0, 4)


def test_correction_follows_what_was_measured_and_forgets():
    correction = Correction()
    assert correction.factor == 1
    for _ in range(300):
        correction.add(1 + 2.0, 1 + 4.0)
    assert correction.factor == pytest.approx(0.5, abs=0.03)
    for _ in range(300):
        correction.add(1 + 5.0, 1 + 4.0)
    assert correction.factor == pytest.approx(1.25, abs=0.06)
    for _ in range(2000):
        correction.idle()
    assert correction.factor == pytest.approx(1, abs=1e-6)


def test_one_pass_hardly_moves_the_correction():
    correction = Correction()
    correction.add(1.0, 5.0)
    assert 0.6 < correction.factor < 1
    with pytest.raises(ValueError, match="at least 1 token, got 0 "):
        correction.add(0, 5.0)
    with pytest.raises(ValueError, match="nan were predicted"):
        correction.add(1, math.nan)


@pytest.mark.parametrize(
    ("pass_seconds", "level_seconds"),
    [
        (lambda rows: max(4.0, 1.0 + 0.01 * rows), linear(0.004, 2e-5)),  # streamed to a GPU, knee at 300
        (lambda rows: max(0.2, 0.02 + 0.004 * rows), linear(0.003, 3e-4)),  # streamed to a processor, knee at 45
        (linear(0.03, 0.002), linear(0.002, 2e-4)),  # in memory
        (linear(0.0, 0.01), linear(0.002, 1e-3)),  # nothing to gain
    ],
)
def test_measuring_and_choosing_come_to_the_best_choice(pass_seconds, level_seconds):
    rng, passes, levels, chooser = random.Random(0), PassTimes(), PassTimes(), Chooser(768, 32)
    passes.add(200, pass_seconds(200))  # a prompt
    levels.add(200, level_seconds(200))
    for step in range(300):
        choice = chooser.current(STATIC, passes.seconds, levels.seconds, 1000 + step)
        drafting = predicted("static", STATIC["static"], flat(0.0), level_seconds, choice.size, max(1, choice.depth))
        noise = rng.uniform(0.95, 1.05) * (10 if rng.random() < 0.03 else 1)
        passes.add(choice.size, noise * pass_seconds(choice.size))
        if choice.depth:
            levels.add(max(1, round((choice.size - 1) / choice.depth)), drafting[1] / choice.depth)
        chooser.took(0.003)
        chooser.passed(pass_seconds(choice.size) + drafting[1])
    best = choose(STATIC, pass_seconds, level_seconds, 768, 32)
    found = choose(STATIC, pass_seconds, level_seconds, 768, 32, [choice.size])
    assert found.seconds_per_token < 1.1 * best.seconds_per_token
    assert (choice.method == "none") == (best.method == "none")


class Counted:
    """A pass time that counts how often it is asked."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, rows):
        self.calls += 1
        return self.seconds


def stay(chooser, yields=STATIC, seconds=1.0, context_length=1000):
    return chooser.current(yields, flat(seconds), flat(0.001), context_length)


def test_a_choice_stands_while_nothing_moves():
    chooser = Chooser(256, 32)
    first = stay(chooser)
    chooser.passed(1e6)
    assert stay(chooser) is first
    assert stay(chooser, seconds=1.09, context_length=1090) is first


@pytest.mark.parametrize(
    "moved",
    [
        {"seconds": 1.2},
        {"context_length": 1200},
        {"yields": {"static": Yield((0.5, 0.1))}},
        {"yields": {"static": Yield((0.7732 - 0.03, *DEFAULT_ACCEPTANCE[1:]))}},
        {"yields": {"static": Yield(DEFAULT_ACCEPTANCE, 0.8)}},
        {"yields": BOTH},
    ],
)
def test_what_moves_by_a_tenth_is_weighed_again(moved):
    chooser = Chooser(256, 32)
    first = stay(chooser)
    chooser.passed(1e6)
    second = stay(chooser, **moved)
    assert second is not first
    assert stay(chooser, **moved) is second


def test_choosing_stays_under_one_percent_of_the_passes():
    chooser, passes, choosing, choices = Chooser(256, 32), 0.0, 0.0, 0
    seconds, last = 1.0, None
    for step in range(3000):
        seconds *= 1.2 if step % 2 else 1 / 1.2  # something always moves
        choice = stay(chooser, seconds=seconds)
        cost = 0.02 if choice is not last else 0.00001
        choosing += cost if step else 0.0
        choices += choice is not last
        last = choice
        chooser.took(cost)
        chooser.passed(0.1)
        passes += 0.1
        assert choosing <= 0.01 * passes + 1e-9
    assert 100 < choices < 150  # and what may be spent is


def test_a_choice_that_stands_asks_hardly_anything():
    chooser, passes = Chooser(768, 64), Counted(1.0)
    chooser.current(STATIC, passes, flat(0.001), 1000)
    passes.calls = 0
    chooser.passed(1e6)
    chooser.current(STATIC, passes, flat(0.001), 1000)
    assert passes.calls <= 3


def test_the_best_tree_is_chosen_where_plain_decoding_is_left_out():
    """Whether it is worth its time is then left to observation."""
    chooser = Chooser(256, 32, plain=False)
    assert chooser.due
    assert chooser.current(STATIC, linear(0.0, 0.01), flat(0.02), 1000).size == 2
    assert choose(STATIC, linear(0.0, 0.01), flat(0.02), 256, 32).method == "none"
    assert Chooser(256, 0, plain=False).current(STATIC, flat(1.0), flat(0.02), 1000).method == "none", "no level"


def test_a_choice_is_due_where_it_is_affordable():
    chooser = Chooser(256, 32)
    assert chooser.due
    stay(chooser)
    chooser.took(0.01)
    assert not chooser.due
    chooser.passed(1.1)
    assert chooser.due


def test_the_rate_of_a_choice():
    assert Choice("static", 8, 3, 2.5, 1.0, 2.5).seconds_per_token == pytest.approx(0.4)
