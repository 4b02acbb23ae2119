import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree.choice.pass_times import PassTimes


def measured(points, repeats=5, **arguments):
    times = PassTimes(**arguments)
    for _ in range(repeats):
        for rows, seconds in points:
            times.add(rows, seconds)
    return times


MEASUREMENTS = st.lists(st.tuples(st.integers(1, 3000), st.floats(1e-5, 100)), max_size=40)


@settings(deadline=None)
@given(MEASUREMENTS, st.floats(0, 10), st.floats(0, 1), st.integers(1, 4000), st.integers(1, 4000))
def test_more_rows_never_take_less_time(points, floor, per_row, few, many):
    times = measured(points, 1, floor=floor, per_row=per_row)
    few, many = sorted((few, many))
    assert 0 <= times.seconds(few) <= times.seconds(many) * (1 + 1e-12) < math.inf
    assert times.known == bool(points)


@settings(deadline=None)
@given(st.floats(0.001, 10), st.floats(0, 0.01), st.sets(st.integers(0, 10), min_size=2), st.integers(1, 4000))
def test_a_straight_line_is_found_and_goes_on(fixed, per_row, powers, rows):
    sizes = [2**power for power in powers]
    times = measured([(size, fixed + per_row * size) for size in sizes])
    for size in [*sizes, min(rows, min(sizes)), max(rows, max(sizes))]:
        assert times.seconds(size) == pytest.approx(fixed + per_row * size, rel=1e-6)
    assert times.seconds(rows) <= (fixed + per_row * rows) * (1 + 1e-6)


def test_what_lies_between_two_sizes_is_thought_as_quick_as_it_can_be():
    times = measured([(96, 4.0), (768, 8.0)])
    assert [times.seconds(rows) for rows in (96, 200, 384, 576, 768)] == pytest.approx([4, 4, 4, 6, 8])
    steady = measured([(96, 4.0), (768, 4.7)])
    assert steady.seconds(432) == pytest.approx(4.0)
    assert measured([(1, 0.1), (101, 20.1)]).seconds(51) <= 10.11  # more than in proportion: no better than straight


def test_the_knee_where_computing_outgrows_the_link():
    times = measured([(n, max(2.0, 0.5 + 0.004 * n)) for n in (1, 64, 256, 375, 512, 768)])
    for rows in (1, 64, 200, 375, 500, 768, 1024):
        assert times.seconds(rows) == pytest.approx(max(2.0, 0.5 + 0.004 * rows), rel=0.15)


def test_a_processor_whose_price_per_row_falls():
    real = {1: 0.010, 8: 0.025, 64: 0.120, 512: 0.900}
    times = measured(real.items())
    for rows, seconds in real.items():
        assert times.seconds(rows) == pytest.approx(seconds, rel=0.1)


def test_nothing_measured_is_the_floor_and_the_slope_given():
    assert PassTimes().seconds(7) == 0
    assert PassTimes(floor=2.0).seconds(700) == 2
    assert PassTimes(floor=2.0, per_row=0.01).seconds(700) == pytest.approx(7)
    assert not PassTimes(floor=2.0).known


def test_one_size_is_flat_or_has_the_slope_given():
    assert measured([(64, 1.0)]).seconds(700) == 1
    assert measured([(64, 1.0)]).seconds(1) == 1
    sloped = measured([(64, 1.0)], per_row=0.01)
    assert sloped.seconds(164) == pytest.approx(2)
    assert sloped.seconds(1) == pytest.approx(0.37)
    assert measured([(64, 1.0)], per_row=10.0).seconds(128) == pytest.approx(2)  # at most in proportion to the rows


def test_the_floor_holds_until_a_pass_goes_below_it():
    above = measured([(64, 2.1), (512, 4.0)], floor=2.0)
    assert above.seconds(1) == 2
    assert measured([(64, 1.5), (512, 4.0)], floor=2.0).seconds(64) == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize("size", [1, 64, 512])
def test_one_slow_pass_tips_nothing(size):
    points = [(1, 1.0), (64, 1.2), (512, 2.0)]
    times = measured(points)
    before = {rows: times.seconds(rows) for rows, _ in points}
    times.add(size, 60.0)
    assert {rows: times.seconds(rows) for rows, _ in points} == pytest.approx(before, rel=0.02)


def test_a_slow_first_pass_is_forgotten_with_the_second():
    times = PassTimes()
    times.add(64, 30.0)
    times.add(64, 1.0)
    assert times.seconds(64) == 1


def test_what_changed_is_believed_after_some_passes():
    times = measured([(64, 1.0)], 100)
    for _ in range(5):
        times.add(64, 3.0)
    assert times.seconds(64) == 3


def test_a_size_once_measured_at_a_bad_moment_is_forgotten():
    times = measured([(8, 0.025), (64, 0.120)])
    for _ in range(3):
        times.add(1, 0.024)  # really 0.012
    assert times.seconds(1) > 0.020
    for _ in range(200):
        times.add(8, 0.025)
    assert times.seconds(1) < 0.017
    assert times.seconds(64) == pytest.approx(0.120, rel=0.25)  # what only old passes know is kept


def test_noise_averages_out():
    rng = random.Random(0)
    times = PassTimes()
    for _ in range(60):
        rows = rng.choice([1, 16, 64, 256])
        times.add(rows, (0.1 + 0.001 * rows) * rng.uniform(0.9, 1.1) * (10 if rng.random() < 0.1 else 1))
    for rows in (1, 16, 64, 256, 512):
        assert times.seconds(rows) == pytest.approx(0.1 + 0.001 * rows, rel=0.15)


def test_passes_timed_together_count_at_their_mean():
    levels = PassTimes()
    for rows in ([1, 1, 1], [1, 8, 15], [1, 30, 60, 109]):
        total = sum(0.002 + 0.0001 * n for n in rows)
        levels.add(round(sum(rows) / len(rows)), total / len(rows))
    assert levels.seconds(50) == pytest.approx(0.007, rel=0.01)


def test_a_prediction_takes_microseconds():
    times = measured([(2**k, 1.0 + 2**k) for k in range(11)])
    times.seconds(1)
    started = time.process_time()
    for rows in range(1, 2001):
        times.seconds(rows)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(("rows", "seconds"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, math.inf), (1, math.nan)])
def test_what_no_pass_can_take_is_refused(rows, seconds):
    with pytest.raises(ValueError, match="at least 1 row and takes a positive time"):
        PassTimes().add(rows, seconds)


@pytest.mark.parametrize("arguments", [{"floor": -1.0}, {"per_row": math.nan}, {"floor": math.inf}])
def test_a_floor_or_slope_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be 0 or more"):
        PassTimes(**arguments)
