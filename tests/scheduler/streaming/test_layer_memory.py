"""Units of every tier on a device of threads, whose copies come late: the right bytes at the right time, and no leaks.

Each order of things has a negative control: with one kind of waiting left out, the same passes compute on wrong bytes.
"""

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from loaders.errors import ModelFilesError
from loaders.io.byte_ranges import ByteRange
from loaders.io.reader import WeightReader
from scheduler.plan import staging
from scheduler.plan.placement import Tier
from scheduler.plan.staging import BOUNCE_CHUNKS, pageable_layers
from scheduler.streaming import copy_window
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.layer_memory import LayerMemory, UnitBytes
from tests.fakes.fake_device import FakeStreams, fake_host
from tests.plan_samples import model

SIZES = [24_576, 16_384, 20_480, 24_576, 8_192, 24_576]
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
TIERS = {
    "host": [HOST] * 6,
    "disk": [DISK] * 6,
    "mixed": [HOST, DISK, DEVICE, DISK, HOST, DEVICE],
}
LITTLE = 65_536  # what WSL2 would grant here: the chunks and a layer or two


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Units are several spans, several chunks and several pieces, as large ones are."""
    monkeypatch.setattr(staging, "SPAN_BYTES", 8192)
    monkeypatch.setattr(staging, "BOUNCE_CHUNK_BYTES", 8192)
    monkeypatch.setattr("scheduler.streaming.link.BOUNCE_CHUNK_BYTES", 8192)
    monkeypatch.setattr(copy_window, "PIECE_BYTES", 8192)


@pytest.fixture
def weights(tmp_path):
    """(file, layers, what each must hold): layers in two runs each, swapped on disk."""
    path, contents, layers = tmp_path / "model.safetensors", [], []
    generator = torch.Generator().manual_seed(0)
    stored = b""
    for nbytes in SIZES:
        content = torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator)
        contents.append(content)
        half = nbytes // 2
        runs = [
            ByteRange(path, len(stored), half, "U8", half, torch.uint8),
            ByteRange(path, len(stored) + half, half, "U8", 0, torch.uint8),
        ]
        stored += content[half:].numpy().tobytes() + content[:half].numpy().tobytes()
        layers.append(UnitBytes(nbytes, tuple(runs)))
    path.write_bytes(stored)
    return path, layers, contents


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def loaded(weights, tiers, granted=None, limit=None, slots=2, **device):
    """A memory on a device of threads. At the end nothing of it is left: no thread, no pinned page, no open file."""
    path, layers, _ = weights
    threads, files = set(threading.enumerate()), open_files()
    streams, (host, pinning) = FakeStreams(**device), fake_host(granted, limit)
    try:
        reader = WeightReader([path], "buffered", threads=2)
        memory = LayerMemory(
            layers, tiers, slots, reader, DeviceMemory(torch.device("cpu")), streams=streams, host=host
        )
        try:
            memory.fake = streams, host, pinning
            yield memory
        finally:
            memory.close()
    finally:
        streams.close()
        assert not pinning.held
        assert set(threading.enumerate()) <= threads and open_files() <= files


def run_pass(memory, weights, compute_seconds=0.0, until=None):
    """Compute on every layer, late; the numbers of those whose bytes were wrong then."""
    _, layers, contents = weights
    streams, wrong = memory.fake[0], []

    def compute(layer, buffer):
        time.sleep(compute_seconds)
        if not torch.equal(buffer[: layers[layer].nbytes], contents[layer]):
            wrong.append(layer)

    memory.ring.rewind()
    for layer in range(len(layers)):
        if layer in memory.resident:
            streams.compute(lambda layer=layer: compute(layer, memory.resident[layer]))
            continue
        slot = memory.ring.slots[memory.ring.acquire(layer)]
        streams.compute(lambda layer=layer, slot=slot: compute(layer, slot))
        if until == layer:
            return wrong
        memory.ring.release()
    return wrong


def run_passes(memory, weights, passes=3, compute_seconds=0.0):
    wrong = [layer for _ in range(passes) for layer in [run_pass(memory, weights, compute_seconds)]]
    memory.fake[0].computing.synchronize()
    return [layer for layers in wrong for layer in layers]


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("granted", [None, LITTLE, 0])
@pytest.mark.parametrize("slots", [2, 3])
def test_every_pass_computes_on_the_right_bytes(weights, tiers, granted, slots):
    for copy_seconds, compute_seconds in ((0.001, 0.0), (0.0, 0.001)):
        with loaded(weights, TIERS[tiers], granted, slots=slots, copy_seconds=copy_seconds) as memory:
            assert run_passes(memory, weights, compute_seconds=compute_seconds) == []


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("granted", [None, LITTLE])
def test_abandoned_passes_leave_the_next_ones_right(weights, tiers, granted):
    """Left before a layer is released, while copies and computations of it and of others are still to come."""
    with loaded(weights, TIERS[tiers], granted, copy_seconds=0.0005) as memory:
        for until in (0, 1, 3, 4):
            run_pass(memory, weights, 0.002, until=until)
            assert run_passes(memory, weights, passes=1) == []


@pytest.mark.parametrize(
    "forgets, tiers, granted, device, compute_seconds",
    [
        ("compute", "host", None, {"copy_seconds": 0.003}, 0.0),  # reads a slot before its copy has come
        ("compute", "disk", None, {"copy_seconds": 0.003}, 0.0),
        ("copy", "host", None, {}, 0.003),  # fills a slot that is still computed on
        ("copy", "disk", None, {}, 0.003),
        ("host", "disk", None, {"copy_seconds": 0.003}, 0.0),  # reads into staging that is still copied from
        ("host", "host", LITTLE, {"copy_seconds": 0.003}, 0.0),  # fills a chunk that is still copied from
        ("host", "mixed", None, {"copy_seconds": 0.003}, 0.0),  # and while loading
    ],
)
def test_a_wait_left_out_is_noticed(weights, forgets, tiers, granted, device, compute_seconds):
    with loaded(weights, TIERS[tiers], granted, **device) as memory:
        assert run_passes(memory, weights, compute_seconds=compute_seconds) == []
    with loaded(weights, TIERS[tiers], granted, forgets=forgets, **device) as memory:
        assert run_passes(memory, weights, compute_seconds=compute_seconds) != []


@pytest.mark.parametrize("granted", [None, LITTLE, 0])
@pytest.mark.parametrize("tiers", TIERS)
def test_who_computes_never_waits_for_the_device(weights, tiers, granted):
    """The threads that copy do: they keep few pieces in flight."""
    with loaded(weights, TIERS[tiers], granted) as memory:
        waits = memory.fake[0].host_waits
        waits.clear()
        assert run_passes(memory, weights) == []
        assert waits["ring"] and "MainThread" not in waits


@pytest.mark.parametrize("tiers", TIERS)
def test_the_ring_goes_on_while_nothing_computes(weights, tiers):
    """Between two passes, while the draft works, the first layers of the next come; no more than there are slots."""
    with loaded(weights, TIERS[tiers], slots=3) as memory:
        run_passes(memory, weights, passes=1)
        memory.ring._prefetcher.wait_until_full()
        memory.fake[0].synchronize()
        streamed = [layer for layer, tier in enumerate(TIERS[tiers]) if tier is not DEVICE]
        held = [slot.numpy().tobytes() for slot in memory.ring.slots]
        for layer in streamed[:3]:
            content = weights[2][layer].numpy().tobytes()
            assert any(slot.startswith(content) for slot in held)


# What is pinned


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("limit", [None, 0, 8192, 60_000, LITTLE, 100_000, 200_000])
def test_what_is_pinned_is_what_was_planned(weights, tiers, limit):
    spec = model("any", SIZES[:-1], SIZES[-1], 0)  # the last layer stands for what lies outside the layers
    placed = [*TIERS[tiers][:-1], DEVICE]
    with loaded(weights, placed, limit=limit) as memory:
        expected = sum(SIZES[layer] for layer in pageable_layers(spec, placed[:-1], limit))
        assert memory.pageable_bytes == expected
        assert limit is None or memory.fake[1].pinned_bytes <= limit
        assert run_passes(memory, weights, passes=2) == []


def test_after_one_refusal_nothing_more_is_asked_for(weights):
    with loaded(weights, TIERS["host"], granted=8192 * BOUNCE_CHUNKS + 24_576) as memory:
        _, host, pinning = memory.fake
        # two threads load: either may be the first to ask, and both may be refused before they know of each other
        granted = sum(held == size for held in pinning.held.values() for size in {*SIZES} - {8192})
        assert BOUNCE_CHUNKS + 1 <= pinning.asked <= BOUNCE_CHUNKS + granted + 2
        pinned = host.pinned_bytes - BOUNCE_CHUNKS * 8192
        assert memory.pageable_bytes == sum(SIZES) - pinned >= sum(SIZES) - 24_576
        assert run_passes(memory, weights) == []


def test_chunks_and_staging_go_when_they_have_nothing_to_do(weights):
    with loaded(weights, [HOST, HOST, DEVICE, HOST, HOST, DEVICE]) as memory:
        assert memory.fake[1].pinned_bytes == sum(SIZES[layer] for layer in (0, 1, 3, 4))


def test_units_of_one_source_share_their_pinned_memory(weights):
    path, layers, contents = weights
    twice = path, [*layers[:2]] * 3, [*contents[:2]] * 3
    with loaded(twice, [HOST] * 6) as memory:
        assert memory.fake[1].pinned_bytes == SIZES[0] + SIZES[1]
        assert run_passes(memory, twice) == []


# Faults


@pytest.mark.parametrize("tiers", ["disk", "mixed"])
def test_a_file_that_shrinks_in_mid_pass_and_comes_back(weights, tiers):
    path = weights[0]
    whole = path.read_bytes()
    with loaded(weights, TIERS[tiers], copy_seconds=0.0005) as memory:
        assert run_passes(memory, weights) == []
        os.truncate(path, 1000)
        for _ in range(2):
            with pytest.raises(ModelFilesError, match="ends at byte 1,000"):
                for _ in range(3):
                    run_pass(memory, weights)
        path.write_bytes(whole)
        assert run_passes(memory, weights) == []


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("granted", [None, LITTLE])
def test_a_file_too_short_to_load_leaves_nothing_behind(weights, tiers, granted):
    os.truncate(weights[0], 50_000)
    with pytest.raises(ModelFilesError, match="ends at byte"), loaded(weights, TIERS[tiers], granted) as memory:
        run_passes(memory, weights)


@pytest.mark.parametrize("tiers", ["host", "mixed"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_loading_that_is_broken_off_leaves_nothing_behind(weights, tiers, error, monkeypatch):
    path, layers, _ = weights
    threads, files = set(threading.enumerate()), open_files()
    streams, (host, pinning) = FakeStreams(), fake_host()
    began, go = threading.Event(), threading.Event()
    fill = WeightReader.fill

    def slow(*arguments):
        began.set()
        assert go.wait(10)
        fill(*arguments)

    def report(done, total):
        assert began.wait(10)
        go.set()
        raise error

    monkeypatch.setattr(WeightReader, "fill", slow)
    with pytest.raises(error):
        LayerMemory(
            layers, TIERS[tiers], 2, WeightReader([path], "buffered", threads=2), DeviceMemory(torch.device("cpu")),
            report, streams=streams, host=host,
        )  # fmt: skip
    streams.close()
    assert not pinning.held and set(threading.enumerate()) == threads and open_files() == files


def test_memory_that_the_system_refuses_is_named_before_anything_is_read(weights, monkeypatch):
    path, layers, _ = weights
    monkeypatch.setattr(WeightReader, "fill", lambda *_: pytest.fail("read before all memory was taken"))
    layers = [*layers[:5], UnitBytes(1 << 60, layers[5].ranges)]
    streams, (host, pinning) = FakeStreams(), fake_host()
    files = open_files()
    with pytest.raises(MemoryError, match="1,152,921,504,606,846,976 bytes of host memory were refused"):
        LayerMemory(
            layers, TIERS["host"], 2, WeightReader([path], "buffered"), DeviceMemory(torch.device("cpu")),
            streams=streams, host=host,
        )  # fmt: skip
    streams.close()
    assert not pinning.held and open_files() == files


@pytest.mark.parametrize("tiers", TIERS)
def test_closing_in_mid_pass(weights, tiers):
    with loaded(weights, TIERS[tiers], LITTLE, copy_seconds=0.001) as memory:
        run_pass(memory, weights, 0.001, until=1)
        memory.close()
        memory.close()
