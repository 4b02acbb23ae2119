"""The ring delivers the right bytes in order, ahead of use, and survives abandoned passes and failed reads."""

import sys
import threading
import time
from itertools import pairwise

import pytest
import torch

from scheduler.streaming.prefetch import SWITCH_SECONDS
from scheduler.streaming.ring import Ring
from tests.fakes.fake_device import FakeStreams


def slots(count: int = 2) -> list[torch.Tensor]:
    return [torch.zeros(8, dtype=torch.uint8) for _ in range(count)]


@pytest.fixture
def closing():
    rings: list[Ring] = []
    yield lambda ring: rings.append(ring) or ring
    for ring in rings:
        ring.close()


def use(ring: Ring, layer: int) -> int:
    slot = ring.acquire(layer)
    value = int(ring.slots[slot][0])
    ring.release()
    return value


@pytest.mark.parametrize("order", [[0], [0, 1], [3, 1, 2], list(range(7))])
@pytest.mark.parametrize("count", [2, 3])
def test_units_arrive_in_order_over_several_passes(order, count, closing):
    ring = closing(Ring(order, slots(count), lambda layer, slot: slot.fill_(layer)))
    assert [use(ring, layer) for _ in range(4) for layer in order] == order * 4


def test_a_slot_in_use_is_not_overwritten(closing):
    """Write after read: with the released count ignored, the reader would fill slot 0 again while layer 0 computes."""
    filled: list[int] = []
    ring = closing(Ring([0, 1, 2, 3], slots(2), lambda layer, slot: (filled.append(layer), slot.fill_(layer))[1]))
    slot = ring.acquire(0)
    time.sleep(0.05)
    assert filled == [0, 1] and int(ring.slots[slot][0]) == 0
    ring.release()
    assert use(ring, 1) == 1


def test_reads_ahead_across_the_end_of_a_pass(closing):
    filled: list[int] = []
    done = threading.Event()

    def fill(layer, slot):
        filled.append(layer)
        if filled == [0, 1, 2, 0, 1]:
            done.set()

    ring = closing(Ring([0, 1, 2], slots(2), fill))
    for layer in (0, 1, 2):
        use(ring, layer)
    assert done.wait(5), filled


def test_rewind_after_an_abandoned_pass(closing):
    ring = closing(Ring([0, 1, 2], slots(2), lambda layer, slot: slot.fill_(layer)))
    use(ring, 0)
    ring.acquire(1)  # abandoned before release
    ring.rewind()
    assert [use(ring, layer) for layer in (0, 1, 2, 0)] == [0, 1, 2, 0]


def test_rewind_between_passes_keeps_what_was_read_ahead(closing):
    fills: list[int] = []
    ring = closing(Ring([0, 1, 2], slots(2), lambda layer, slot: (fills.append(layer), slot.fill_(layer))[1]))
    for _ in range(3):
        ring.rewind()
        assert [use(ring, layer) for layer in (0, 1, 2)] == [0, 1, 2]
    ring.close()
    assert len(fills) <= 3 * 3 + 2


def test_an_error_reaches_the_caller_and_the_ring_recovers(closing):
    broken = threading.Event()
    broken.set()

    def fill(layer, slot):
        if layer == 1 and broken.is_set():
            raise OSError("disk on fire")
        slot.fill_(layer)

    ring = closing(Ring([0, 1], slots(2), fill))
    assert use(ring, 0) == 0
    for _ in range(2):
        with pytest.raises(OSError, match="disk on fire"):
            ring.acquire(1)
    broken.clear()
    ring.rewind()
    assert [use(ring, layer) for layer in (0, 1)] == [0, 1]


def test_slots_made_in_inference_mode_are_filled(closing):
    with torch.inference_mode():
        buffers = slots()
    ring = closing(Ring([0, 1, 2], buffers, lambda layer, slot: slot.fill_(layer)))
    assert [use(ring, layer) for layer in (0, 1, 2)] == [0, 1, 2]


def test_close_stops_the_thread():
    before = threading.active_count()
    ring = Ring([0, 1], slots(2), lambda layer, slot: None)
    ring.close()
    assert threading.active_count() == before


def test_threads_take_quick_turns_while_any_ring_copies():
    usual, device = sys.getswitchinterval(), FakeStreams()
    try:
        rings = [Ring([0, 1], slots(2), lambda layer, slot: None, device) for _ in range(2)]
        for ring in rings:
            assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
            ring.close()
            ring.close()
        assert sys.getswitchinterval() == usual
        ring = Ring([0, 1], slots(2), lambda layer, slot: None)  # who copies computes itself
        assert sys.getswitchinterval() == usual
        ring.close()
    finally:
        device.close()


def test_fills_are_told_with_the_time_their_copies_took(closing):
    """To the end of a copy that goes on after its fill has returned, without the time that its slot was in use."""
    streams, told = FakeStreams(copy_seconds=0.02), []
    source = torch.full((8,), 3, dtype=torch.uint8)
    ring = closing(Ring([0, 1], slots(), lambda layer, slot: streams.copy(slot, source), streams))
    for layer in (0, 1):
        use(ring, layer)
    ring.on_filled = lambda *fill: told.append(fill)
    for layer in (0, 1) * 4:
        ring.acquire(layer)
        streams.compute(lambda: time.sleep(0.08))
        ring.release()
    ring.on_filled = None
    assert len(told) >= 4 and {layer for layer, _, _ in told} == {0, 1}
    assert all(one[2] <= other[1] for one, other in pairwise(told)), "one after the other"
    taken = [end - begin for _, begin, end in told]
    assert min(taken) >= 0.02 and sorted(taken)[len(taken) // 2] < 0.08
