"""KV rows in host memory arrive with their layer and go back, on a device whose copies and computations come late."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from offload_runtime.model.cached_rows.travelling_rows import RowRange, TravellingRows
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.streams import Streams
from tests.fakes.fake_device import FakePinning, FakeStreams, fake_host

LAYERS, ROWS = 5, 24
KEYS, VALUES = (2, 3), (2, 5)  # heads and their width, as in latent attention
ROW_BYTES = 4 * (2 * 3 + 2 * 5)
# Of every pass, what it reads and what it adds: two texts that take turns, share passes, and drop what was not kept.
PASSES: list[tuple[list[RowRange], list[RowRange]]] = [
    ([(0, 0)], [(0, 5)]),
    ([(12, 12)], [(12, 15)]),
    ([(0, 5), (12, 15)], [(5, 8), (15, 16)]),
    ([(0, 6)], [(6, 9)]),
    ([(12, 16), (0, 9)], [(16, 20), (9, 10)]),
    ([(0, 10), (12, 20)], [(10, 11), (20, 23)]),
]


def arrived(rows: TravellingRows, layer: int, new: Sequence[Tensor]) -> Sequence[Tensor]:
    """Keys and values of a layer on the device."""
    return [*rows.arrive(layer, dict(zip(("keys", "values"), new))).values()]


class Late:
    """Rows on a device of late streams, beside plain tensors that hold what they should."""

    def __init__(
        self,
        streams: FakeStreams,
        row_bytes: int = ROW_BYTES,
        granted: int | None = None,
        compute_seconds: float = 0.0,
    ):
        self.compute_seconds = compute_seconds
        self.streams, self.memory = streams, DeviceMemory(torch.device("cpu"))
        self.host, self.pinning = fake_host(granted)
        self.rows = TravellingRows(LAYERS, ROWS, row_bytes, streams, self.host, self.memory)
        self.expected = [
            (torch.zeros(1, heads, ROWS, width), torch.zeros(1, other, ROWS, wide))
            for (heads, width), (other, wide) in [(KEYS, VALUES)] * LAYERS
        ]
        self.wrong: list[str] = []

    def run(self, number: int, in_use: list[RowRange], added: list[RowRange]) -> None:
        """A pass: every layer is compared where it reads, and written where it adds."""
        with self.rows.one_pass(in_use, added):
            for layer, expected in enumerate(self.expected):
                new = [torch.full_like(states, 100 * number + layer + 1) for states in expected]
                self._layer(number, layer, arrived(self.rows, layer, new), new, in_use, added)

    def _layer(self, number: int, layer: int, tables: Sequence[Tensor], new: list[Tensor], *spans: list[RowRange]):
        in_use, added = spans
        before = [states.clone() for states in self.expected[layer]]

        def compute() -> None:
            time.sleep(self.compute_seconds)
            for states, right, values in zip(tables, before, new):
                for begin, end in in_use:
                    if not torch.equal(states[:, :, begin:end], right[:, :, begin:end]):
                        self.wrong.append(f"pass {number}, layer {layer}, rows {begin} to {end}")
                for begin, end in added:
                    states[:, :, begin:end] = values[:, :, begin:end]

        self.streams.compute(compute)
        for states, values in zip(self.expected[layer], new):
            for begin, end in added:
                states[:, :, begin:end] = values[:, :, begin:end]

    def abandon(self, layer: int, tables: Sequence[Tensor]) -> None:
        """Leave the device to do what is left of an abandoned pass: slow, and still over its rows."""
        before = [states.clone() for states in self.expected[layer]]

        def compute() -> None:
            time.sleep(0.01)
            for states, right in zip(tables, before):
                if not torch.equal(states[:, :, :5], right[:, :, :5]):
                    self.wrong.append(f"abandoned, layer {layer}")
                states[:, :, 5:7] = -1

        self.streams.compute(compute)

    def on_host_as_expected(self) -> bool:
        self.streams.computing.synchronize()  # type: ignore[union-attr]
        return all(
            torch.equal(states, right)
            for layer, expected in enumerate(self.expected)
            for states, right in zip(self.rows.on_host(layer).values(), expected)
        )


@contextmanager
def late(forgets: str | None = None, copy_seconds: float = 1e-3, **options: Any) -> Iterator[Late]:
    streams = FakeStreams(copy_seconds, forgets)
    device = Late(streams, **options)
    try:
        yield device
    finally:
        streams.computing.synchronize()  # type: ignore[union-attr]
        device.rows.close()
        streams.close()


@pytest.mark.parametrize("row_bytes", [ROW_BYTES, ROW_BYTES - 8, ROW_BYTES + 8, 4])
def test_rows_arrive_with_their_layer_and_go_back(row_bytes: int) -> None:
    """Whatever a layer was thought to need: the first pass says it."""
    with late(row_bytes=row_bytes) as device:
        for number, (in_use, added) in enumerate(PASSES):
            device.run(number, in_use, added)
        assert device.on_host_as_expected() and not device.wrong
        assert device.rows.crossed_bytes == ROW_BYTES * LAYERS * sum(b - a for reads, _ in PASSES for a, b in reads)
        assert sum(device.pinning.held.values()) == LAYERS * 4096
    assert not device.pinning.held


@pytest.mark.parametrize(("forgets", "late_copies", "late_layers"), [("compute", 0.01, 0.0), ("copy", 0.0, 0.01)])
def test_without_events_they_are_wrong(forgets: str, late_copies: float, late_layers: float) -> None:
    """The negative control: computations that do not wait for rows, copies that do not wait for computations."""
    with late(forgets, late_copies, compute_seconds=late_layers) as device:
        for number, (in_use, added) in enumerate(PASSES):
            device.run(number, in_use, added)
        assert device.wrong or not device.on_host_as_expected()


def test_the_host_waits_only_where_it_moves_rows() -> None:
    with late() as device:
        for number, (in_use, added) in enumerate(PASSES):
            device.run(number, in_use, added)
        assert not device.streams.host_waits
        assert device.on_host_as_expected()


def test_rows_moved_on_the_host_are_those_of_the_next_pass() -> None:
    with late() as device:
        device.run(0, [(0, 0)], [(0, 8)])
        for layer in range(LAYERS):
            for states, expected in zip(device.rows.on_host(layer).values(), device.expected[layer]):
                assert torch.equal(states, expected), "what the pass has added is there"
                for rows in (states, expected):
                    rows[:, :, 3:6] = rows[:, :, 5:8] + 7
        device.run(1, [(0, 6)], [(6, 7)])
        assert device.on_host_as_expected() and not device.wrong


@pytest.mark.parametrize("layers", range(LAYERS))
def test_a_pass_that_is_abandoned_leaves_the_rows_that_were_there(layers: int) -> None:
    with late() as device:
        device.run(0, [(0, 0)], [(0, 5)])
        with suppress(KeyboardInterrupt), device.rows.one_pass([(0, 5)], [(5, 7)]):
            for layer in range(layers):
                new = [torch.full_like(states, -1.0) for states in device.expected[layer]]
                device.abandon(layer, arrived(device.rows, layer, new))
            raise KeyboardInterrupt
        device.run(1, [(0, 5)], [(5, 7)])
        assert device.on_host_as_expected() and not device.wrong


def test_a_first_pass_that_is_abandoned_is_begun_again() -> None:
    with late(row_bytes=4) as device:
        with suppress(KeyboardInterrupt), device.rows.one_pass([(0, 0)], [(0, 5)]):
            arrived(device.rows, 0, device.expected[0])
            raise KeyboardInterrupt
        for number, (in_use, added) in enumerate(PASSES):
            device.run(number, in_use, added)
        assert device.on_host_as_expected() and not device.wrong


def test_layers_are_used_in_order() -> None:
    with late() as device, pytest.raises(AssertionError, match="in order"), device.rows.one_pass([], [(0, 1)]):
        arrived(device.rows, 1, device.expected[1])


def test_what_cannot_be_pinned_travels_as_well() -> None:
    with late(granted=2 * 4096) as device:
        for number, (in_use, added) in enumerate(PASSES):
            device.run(number, in_use, added)
        assert device.on_host_as_expected() and not device.wrong
        assert sum(device.pinning.held.values()) == 2 * 4096


def test_device_memory_holds_two_layers_at_most() -> None:
    memory, (host, _) = DeviceMemory(torch.device("cpu")), fake_host()
    rows = TravellingRows(LAYERS, ROWS, ROW_BYTES, Streams(), host, memory)
    assert memory.peak_bytes == 2 * ROWS * ROW_BYTES
    rows.close()
    assert isinstance(host._pinning, FakePinning) and not host._pinning.held
