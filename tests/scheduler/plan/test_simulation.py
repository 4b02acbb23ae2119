"""The ring on paper against what must hold of any ring, and against the real one."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler.plan.placement import spread
from scheduler.plan.simulation import Stage, simulate
from scheduler.streaming.ring import Ring

SECONDS = st.floats(0, 1) | st.just(0.0)
STAGES = st.lists(st.builds(Stage, SECONDS, st.floats(1e-3, 1), SECONDS), min_size=4, max_size=12)
RESIDENT = st.lists(st.builds(Stage, st.just(0.0), st.just(0.0), SECONDS), min_size=1, max_size=12)


@given(STAGES, st.integers(2, 4), st.integers(1, 3))
def test_a_pass_takes_the_longest_part_at_least_and_all_parts_at_most(stages, slots, staging):
    seconds = simulate(stages, slots, staging)
    longest = max(seconds.disk, seconds.link, seconds.compute)
    assert longest - 1e-9 <= seconds.total <= seconds.disk + seconds.link + seconds.compute + 1e-9


@given(STAGES, st.integers(2, 4), SECONDS)
def test_more_slots_and_longer_gaps_never_slow_a_pass(stages, slots, gap):
    now = simulate(stages, slots, 2, gap).total
    assert simulate(stages, slots + 1, 2, gap).total <= now + 1e-9
    assert simulate(stages, slots, 2, gap + 0.5).total <= now + 1e-9


@given(RESIDENT, SECONDS)
def test_without_streaming_a_pass_is_its_computation(stages, gap):
    assert simulate(stages, 0, 2, gap).total == pytest.approx(sum(stage.compute for stage in stages))


@pytest.mark.parametrize(("copy", "compute"), [(0.3, 0.1), (0.1, 0.3), (0.2, 0.2)])
def test_equal_units_run_at_the_speed_of_the_slower_side(copy, compute):
    seconds = simulate([Stage(0, copy, compute)] * 40, 2, 2)
    assert seconds.total == pytest.approx(40 * max(copy, compute))


def test_one_slot_copies_and_computes_in_turn():
    assert simulate([Stage(0, 0.3, 0.1)] * 5, 1, 2).total == pytest.approx(5 * 0.4)


def test_resident_units_spread_out_hide_in_the_copies_and_bunched_up_do_not():
    copied, resident = Stage(0, 1.0, 0.1), Stage(0, 0, 0.9)
    assert simulate([copied, resident] * 10, 2, 2).total == pytest.approx(10.0)
    assert simulate([copied] * 10 + [resident] * 10, 2, 2).total > 15


def test_the_gap_between_passes_fills_the_slots():
    stages = [Stage(0, 1.0, 0.0)] * 10
    assert simulate(stages, 2, 2, gap=1.5).total == pytest.approx(8.5)
    assert simulate(stages, 2, 2, gap=9.0).total == pytest.approx(8.0)


def test_the_disk_is_read_while_other_units_cross_the_link():
    stages = [Stage(3.0, 0.5, 0.0), *[Stage(0, 1.0, 0.0)] * 3] * 4
    assert simulate(stages, 2, 2).total == pytest.approx(4 * 3.5)
    assert simulate(stages, 2, 2).disk == 12.0


def test_a_single_staging_buffer_makes_disk_and_link_take_turns():
    stages = [Stage(1.0, 1.0, 0.0)] * 6
    assert simulate(stages, 2, 1).total == pytest.approx(12.0) and simulate(stages, 2, 2).total == pytest.approx(6.0)


@pytest.mark.parametrize("gap", [0.0, 0.2, 0.5, 1.0, 3.0])
def test_the_same_bytes_resident_save_at_least_what_slots_do(gap):
    """Why a plan has no more than three slots, however long drafting takes: slots gain only while it goes on. The last
    copy is computed before resident layers that come after it, which is all that they can lose."""
    link, compute, layers, more = 0.1, 0.01, 20, 4
    streamed = [Stage(0, link, compute)] * layers
    kept = [Stage(0, 0 if mark else link, compute) for mark in spread(more, layers)]
    two, slots, resident = (
        simulate(stages, count, 2, gap).total for stages, count in ((streamed, 2), (streamed, 2 + more), (kept, 2))
    )
    assert resident <= slots + compute + 1e-9 and resident <= two - more * link + compute + 1e-9
    gained = min(gap - 2 * link, more * link) if gap > 2 * link else 0.0
    assert slots == pytest.approx(two - gained, abs=4 * compute)


def test_the_real_ring_keeps_the_predicted_order_of_times():
    """Sleeping fills and computations: the measured pass is near the prediction, as far as a busy machine allows."""
    stages = [Stage(0, 0.02, 0.005), Stage(0, 0.004, 0.02), Stage(0, 0.02, 0.005), Stage(0, 0.01, 0.01)] * 2

    def one_pass() -> float:
        begin = time.perf_counter()
        for layer, stage in enumerate(stages):
            ring.acquire(layer)
            time.sleep(stage.compute)
            ring.release()
        return time.perf_counter() - begin

    ring = Ring(range(8), [torch.empty(1) for _ in range(2)], lambda layer, slot: time.sleep(stages[layer].copy))
    try:
        measured = min(one_pass() for _ in range(6))
    finally:
        ring.close()
    assert measured >= 0.95 * simulate(stages, 2, 2).total


def test_a_layer_of_experts_alone_waits_for_what_its_router_names():
    """Also as the first one, before anything was copied."""
    seconds = simulate([Stage(0, 0, 0.1, fetch_read=0.4, fetch_copy=0.2)] * 5, 2, 2)
    assert seconds.total == pytest.approx(5 * (0.4 + 0.1))
    assert (seconds.disk, seconds.link) == (pytest.approx(2.0), pytest.approx(1.0))
