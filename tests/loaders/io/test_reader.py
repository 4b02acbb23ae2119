"""Filling buffers from files: equal to naive reads bit for bit, whatever the offsets, casts, chunks and failures."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders.errors import ModelFilesError
from loaders.io.byte_ranges import ByteRange, ByteRanges, bytes_on_disk, in_file_order
from loaders.io.direct import DISK_BLOCK, FileTable, OpenFile, Workers, aligned_memory, measure_read_bandwidth, round_up
from loaders.io.reader import WeightReader, choose_io
from loaders.io.requests import read_requests
from loaders.modules.layout import TORCH_DTYPES

UNTOUCHED = 0xA5  # what buffers hold before a fill, so that writes outside the runs show
CASTS = [
    ("F32", torch.float32), ("BF16", torch.bfloat16), ("U8", torch.uint8),
    ("BF16", torch.float32), ("F16", torch.float32), ("F32", torch.bfloat16), ("F32", torch.float16),
]  # fmt: skip


@pytest.fixture(params=["direct", "buffered"])
def io(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(DISK_BLOCK))
    with closing(OpenFile(probe, direct=True)) as file:
        if request.param == "direct" and not file.direct:
            pytest.skip("the filesystem of the temporary directory refuses direct reads")
    return request.param


def values(count: int, stored_dtype: str, seed: int) -> Tensor:
    """Finite values of a stored dtype: the payload of a NaN may change in a cast."""
    generator = torch.Generator().manual_seed(seed)
    if stored_dtype == "U8":
        return torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
    return torch.randn(count, generator=generator).to(TORCH_DTYPES[stored_dtype])


class FileBuilder:
    """Writes tensors at chosen distances into files, and remembers the runs and what a buffer must hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.contents: dict[str, bytearray] = {}
        self.runs: list[ByteRange] = []
        self.expected = bytearray()

    def add(self, name: str, gap: int, count: int, stored_dtype: str, buffer_dtype: torch.dtype) -> None:
        content = self.contents.setdefault(name, bytearray())
        content += bytes(gap)
        stored = values(count, stored_dtype, seed=len(self.runs))
        raw = stored.view(torch.uint8).numpy().tobytes()
        place = -(-len(self.expected) // 256) * 256
        self.runs.append(ByteRange(self.directory / name, len(content), len(raw), stored_dtype, place, buffer_dtype))
        content += raw
        self.expected += bytes([UNTOUCHED]) * (place - len(self.expected))
        self.expected += stored.to(buffer_dtype).view(torch.uint8).numpy().tobytes()

    def write(self, tail: int = 0) -> ByteRanges:
        for name, content in self.contents.items():
            (self.directory / name).write_bytes(content + bytes(tail))
        return in_file_order(self.runs)

    @property
    def files(self) -> list[Path]:
        return [self.directory / name for name in self.contents]

    def buffer(self) -> Tensor:
        return torch.full((len(self.expected),), UNTOUCHED, dtype=torch.uint8)

    def matches(self, buffer: Tensor) -> bool:
        return buffer.numpy().tobytes() == bytes(self.expected)


@pytest.fixture
def built(tmp_path: Path) -> FileBuilder:
    """Three matrices and three norms of float32, one after the other behind an odd header."""
    builder = FileBuilder(tmp_path)
    for index in range(3):
        builder.add("a.safetensors", 0 if index else 72, 300_000 + index, "F32", torch.float32)
        builder.add("a.safetensors", 0, 16, "F32", torch.float32)
    return builder


run_sizes = st.tuples(
    st.sampled_from(["a", "b"]),
    st.one_of(st.integers(0, 20), st.integers(0, 5 * DISK_BLOCK), st.just(70_000)),
    st.one_of(st.integers(1, 40), st.integers(1, 9 * DISK_BLOCK)),
    st.sampled_from(CASTS),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(run_sizes, min_size=1, max_size=12), blocks=st.integers(1, 4), tail=st.integers(0, 5000))
def test_any_runs_equal_naive_reads(io: str, tmp_path: Path, sizes: list, blocks: int, tail: int) -> None:
    builder = FileBuilder(tmp_path)
    for name, gap, count, dtypes in sizes:
        builder.add(name, gap, count, *dtypes)
    source, buffer = builder.write(tail), builder.buffer()
    with WeightReader(builder.files, io, threads=3, chunk_bytes=blocks * DISK_BLOCK) as reader:
        reader.fill(source, buffer)
        assert builder.matches(buffer)
        assert reader.bytes_read == bytes_on_disk(source)


@pytest.mark.parametrize("stored_dtype, buffer_dtype", CASTS)
def test_casts_at_the_default_chunk_size(io: str, tmp_path: Path, stored_dtype: str, buffer_dtype: torch.dtype) -> None:
    builder = FileBuilder(tmp_path)
    builder.add("model.safetensors", 8 + 72, 1_200_001, stored_dtype, buffer_dtype)
    builder.add("model.safetensors", 1, 1001, stored_dtype, buffer_dtype)
    source, buffer = builder.write(), builder.buffer()
    with WeightReader(builder.files, io) as reader:
        reader.fill(source, buffer)
    assert builder.matches(buffer)


def test_chunks_cover_every_byte_once_and_split_no_element(built: FileBuilder) -> None:
    source = built.write()
    chunks = read_requests(source, DISK_BLOCK)
    pieces = [piece for chunk in chunks for piece in chunk.ranges]
    assert bytes_on_disk(pieces) == bytes_on_disk(source)
    assert all(piece.nbytes % piece.itemsize == 0 for piece in pieces)
    assert all(left.stop == right.start for left, right in pairwise(chunks))
    assert all(chunk.stop - chunk.start < DISK_BLOCK + 8 for chunk in chunks)


def test_small_neighbours_are_one_read(tmp_path: Path) -> None:
    builder = FileBuilder(tmp_path)
    for _ in range(20):
        builder.add("norms.safetensors", 128, 64, "BF16", torch.bfloat16)
    assert len(read_requests(builder.write(), 1 << 20)) == 1


def test_far_neighbours_are_two_reads(tmp_path: Path) -> None:
    builder = FileBuilder(tmp_path)
    for _ in range(2):
        builder.add("far.safetensors", 100_000, 64, "BF16", torch.bfloat16)
    assert len(read_requests(builder.write(), 1 << 20)) == 2


def test_a_range_may_be_read_twice(io: str, built: FileBuilder) -> None:
    run = built.write()[0]
    twice = (run, ByteRange(run.file, run.file_offset, run.nbytes, "F32", run.nbytes, torch.float32))
    buffer = torch.zeros(2 * run.nbytes, dtype=torch.uint8)
    with WeightReader(built.files, io) as reader:
        reader.fill(twice, buffer)
    assert bytes(built.expected[: run.nbytes]) * 2 == buffer.numpy().tobytes()


def test_an_empty_unit_reads_nothing(io: str, built: FileBuilder) -> None:
    built.write()
    with WeightReader(built.files, io) as reader:
        reader.fill((), torch.zeros(0, dtype=torch.uint8))
        assert reader.bytes_read == 0


def test_threads_may_fill_at_once(io: str, built: FileBuilder) -> None:
    source = built.write()
    buffers = [built.buffer() for _ in range(6)]
    with WeightReader(built.files, io, threads=3, chunk_bytes=1 << 16) as reader:
        with ThreadPoolExecutor(6) as callers:
            list(callers.map(lambda buffer: reader.fill(source, buffer), buffers))
        assert reader.bytes_read == 6 * bytes_on_disk(source)
    assert all(map(built.matches, buffers))


def test_a_buffer_of_inference_mode_can_be_filled(io: str, tmp_path: Path) -> None:
    builder = FileBuilder(tmp_path)
    builder.add("model.safetensors", 8, 1000, "BF16", torch.float32)
    with torch.inference_mode(), WeightReader(builder.files if builder.write() else [], io) as reader:
        buffer = builder.buffer()
        reader.fill(tuple(builder.runs), buffer)
    assert builder.matches(buffer)


@pytest.mark.parametrize("buffer", [torch.zeros(8), torch.zeros(2, 4, dtype=torch.uint8)])
def test_other_than_flat_bytes_are_refused(built: FileBuilder, buffer: Tensor) -> None:
    source = built.write()
    with WeightReader(built.files) as reader, pytest.raises(ValueError, match="flat uint8"):
        reader.fill(source, buffer)


# Failures


@pytest.mark.parametrize("cut_bytes", [1, 5000, 2_000_000])
def test_a_truncated_file_is_named(io: str, built: FileBuilder, cut_bytes: int) -> None:
    source = built.write()
    size = built.files[0].stat().st_size - cut_bytes
    os.truncate(built.files[0], size)
    named = pytest.raises(ModelFilesError, match=rf"a\.safetensors: bytes .* ends at byte {size:,}")
    with WeightReader(built.files, io) as reader, named:
        reader.fill(source, built.buffer())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"gone\.safetensors: cannot be read: No such file"):
        WeightReader([tmp_path / "gone.safetensors"])


def test_a_failing_disk_stops_all_threads(io: str, built: FileBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    source, buffer, real, calls = built.write(), built.buffer(), os.preadv, []

    def preadv(descriptor: int, views: list, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 5:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.001)
        return real(descriptor, views, offset)

    with WeightReader(built.files, io, threads=2, chunk_bytes=DISK_BLOCK) as reader:
        with monkeypatch.context() as patch, pytest.raises(ModelFilesError, match="failed: Input/output error"):
            patch.setattr(os, "preadv", preadv)
            reader.fill(source, buffer)
        assert len(calls) < 20
        reader.fill(source, buffer)  # the reader stays usable
    assert built.matches(buffer)


def test_short_reads_are_continued(io: str, built: FileBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    source, buffer, real = built.write(), built.buffer(), os.preadv
    most = DISK_BLOCK if io == "direct" else 999

    def preadv(descriptor: int, views: list, offset: int) -> int:
        return real(descriptor, [views[0][:most]], offset)

    with WeightReader(built.files, io, chunk_bytes=1 << 16) as reader:
        monkeypatch.setattr(os, "preadv", preadv)
        reader.fill(source, buffer)
    assert built.matches(buffer)


def test_an_interrupted_caller_waits_for_the_threads() -> None:
    done: list[int] = []

    def work(item: int, memory: memoryview) -> None:
        time.sleep(0.01)
        done.append(item)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with closing(Workers(threads=2, chunk_bytes=DISK_BLOCK)) as workers, pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            workers.run(range(1000), work)
    finally:
        signal.signal(signal.SIGALRM, previous)
    count = len(done)
    time.sleep(0.05)
    assert count == len(done) < 100


# Direct or buffered


@pytest.mark.parametrize("call", ["open", "preadv"])
def test_refused_direct_reads_fall_back(built: FileBuilder, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("no direct reads on this system")
    source, buffer, real = built.write(), built.buffer(), getattr(os, call)

    def refuse(target: object, *arguments: object) -> int:
        flags = arguments[0] if call == "open" else fcntl.fcntl(target, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(target, *arguments)

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr("loaders.io.reader.choose_io", lambda *_: "direct")
    with WeightReader(built.files, "auto") as reader:
        assert not reader.direct
        reader.fill(source, buffer)
    assert built.matches(buffer)
    assert not measure_read_bandwidth(built.files, seconds=0.01).direct
    with pytest.raises(ModelFilesError, match="refuses direct reads"):
        WeightReader(built.files, "direct")


def test_auto_reads_past_a_page_cache_that_is_too_small() -> None:
    assert choose_io(100, available_bytes=199) == "direct"
    assert choose_io(100, available_bytes=200) == "buffered"


def test_bounce_memory_is_stated(built: FileBuilder) -> None:
    built.write()
    with WeightReader(built.files, threads=3, chunk_bytes=10_000) as reader:
        assert reader.bounce_bytes == 3 * (12_288 + 2 * DISK_BLOCK)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be listed")
def test_files_are_closed(built: FileBuilder) -> None:
    built.write()
    before = set(Path("/proc/self/fd").iterdir())
    WeightReader(built.files).close()
    with pytest.raises(ModelFilesError):
        FileTable([*built.files, Path("/nonexistent")], direct=True)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_")]


def test_aligned_memory_is_aligned() -> None:
    memory = aligned_memory(5000)
    assert len(memory) == round_up(5000) == 2 * DISK_BLOCK
    assert torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % DISK_BLOCK == 0


# Measuring


def test_bandwidth_counts_real_bytes(built: FileBuilder, tmp_path: Path) -> None:
    built.write()
    (tmp_path / "empty").touch()
    measured = measure_read_bandwidth([*built.files, tmp_path / "empty"], seconds=60)
    assert measured.nbytes == built.files[0].stat().st_size
    assert measured.bytes_per_second > 0


def test_bandwidth_stops_in_time(built: FileBuilder) -> None:
    built.write()
    assert (
        DISK_BLOCK <= measure_read_bandwidth(built.files, 0, threads=2, chunk_bytes=DISK_BLOCK).nbytes <= 2 * DISK_BLOCK
    )


def test_bandwidth_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ModelFilesError, match="no bytes to read"):
        measure_read_bandwidth([tmp_path / "empty"])


def test_measuring_needs_no_torch() -> None:
    code = "import sys, loaders.io.direct; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
