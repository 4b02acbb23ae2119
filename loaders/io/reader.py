"""Reads the weights of a layer from disk into its flat buffer, in parallel, casting on the way where needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.io.byte_ranges import ByteRange, ByteRanges, bytes_on_disk
from loaders.io.direct import CHUNK_BYTES, THREADS, FileTable, Workers, round_up
from loaders.io.requests import ReadRequest, read_requests
from loaders.modules.layout import TORCH_DTYPES

MIN_CHUNK_BYTES = 1 << 20  # small layers are split finer, to occupy all threads
SERIAL_ELEMENTS = 32768  # torch casts up to this many in the calling thread; more would start an OpenMP team in each


def choose_io(file_bytes: int, available_bytes: int) -> Literal["direct", "buffered"]:
    """Use buffered reads if memory holds the files twice: in the page cache, for the next run, and as weights."""
    return "buffered" if 2 * file_bytes <= available_bytes else "direct"


class WeightReader:
    """Fills the flat buffers of layers from a checkpoint's files, which it keeps open. A context manager.

    Threads may fill different buffers at once; they share the reading threads, and overlapping fills keep the disk
    busy.
    """

    def __init__(
        self,
        files: Iterable[Path],
        io: Literal["auto", "direct", "buffered"] = "auto",
        threads: int = THREADS,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Open `files`. Raises ModelFilesError if one cannot be opened.

        "direct" requires reads that bypass the page cache; "auto" uses them if the files do not fit comfortably into
        available memory, except for files whose filesystem refuses. `chunk_bytes` is the size of one read.
        """
        paths = list(files)
        self._chunk_bytes = round_up(chunk_bytes)
        self._files = FileTable(paths, direct=io == "direct" or (io == "auto" and _wants_direct(paths)))
        if io == "direct":
            self._insist_on_direct()
        self._workers = Workers(threads, self._chunk_bytes)
        self._lock = threading.Lock()
        self.bytes_read = 0  # disk bytes that reached a buffer
        self.busy_seconds = 0.0  # during which anything was being read
        self._fills, self._busy_since = 0, 0.0

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stop(self) -> None:
        """End current and later fills early, with RuntimeError: their data is not needed. `close` follows."""
        self._workers.stop()

    def close(self) -> None:
        """Wait for running fills, then close all files."""
        self._workers.close()
        self._files.close()

    @property
    def direct(self) -> bool:
        """Whether all reads bypass the page cache."""
        return all(file.direct for file in self._files)

    @property
    def bounce_bytes(self) -> int:
        """Memory of the reader's own buffers."""
        return self._workers.bounce_bytes

    def fill(self, ranges: ByteRanges, buffer: Tensor) -> None:
        """Read all `ranges` to their offsets in `buffer` (uint8 [nbytes], on the CPU); padding is left as it is.

        Adapters are added here, so the weights are already merged, whatever tier they go to.

        Raises ModelFilesError, naming file and offset, if a file is shorter than needed or cannot be read; the buffer's
        content is undefined then.
        """
        target = _bytes_of(buffer)
        requests = read_requests(ranges, self._grid_bytes_for(bytes_on_disk(ranges)))
        assert all(one.buffer_stop <= len(target) for one in ranges), len(target)

        def read(request: ReadRequest, memory: memoryview) -> None:
            self._read(request, target, memory)
            with self._lock:
                self.bytes_read += bytes_on_disk(request.ranges)

        with self._busy():
            self._workers.run(requests, read)
        for one in ranges:
            if one.update:
                values = buffer[one.buffer_offset : one.buffer_stop].view(one.buffer_dtype)
                one.update.add_to(values, one.update_start)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        with self._lock:
            if not self._fills:
                self._busy_since = time.perf_counter()
            self._fills += 1
        try:
            yield
        finally:
            with self._lock:
                self._fills -= 1
                if not self._fills:
                    self.busy_seconds += time.perf_counter() - self._busy_since

    def _read(self, request: ReadRequest, target: memoryview, memory: memoryview) -> None:
        file = self._files[request.file]
        if request.fits_in_place and not file.direct:
            file.read_into([target[one.buffer_offset : one.buffer_stop] for one in request.ranges], request.start)
        else:
            stored = file.read(request.start, request.stop, memory)
            for one in request.ranges:
                content = stored[one.file_offset - request.start : one.file_stop - request.start]
                _copy(one, content, target[one.buffer_offset : one.buffer_stop])

    def _grid_bytes_for(self, nbytes: int) -> int:
        """The number of chunks that gives all threads equally many: a last round for a few would leave the disk idle.

        58 chunks among 8 threads reached 0.91 to 0.99 of the disk's bandwidth, 63 chunks 0.98 to 1.01. It is one chunk
        less than a multiple of the threads, since a layer's offset in the grid of chunks may add one.
        """
        threads = self._workers.threads
        rounds = -(-nbytes // (threads * self._chunk_bytes))
        while rounds and -(-nbytes // max(1, threads * rounds - 1)) > self._chunk_bytes:
            rounds += 1
        even = round_up(-(-nbytes // max(1, threads * rounds - 1)))
        return min(self._chunk_bytes, max(even, MIN_CHUNK_BYTES))

    def _insist_on_direct(self) -> None:
        refused = [file.path for file in self._files if not file.direct]
        if refused:
            self._files.close()
            raise ModelFilesError(f"{refused[0]}: its filesystem refuses direct reads. Use io='auto' or io='buffered'.")


def _wants_direct(paths: list[Path]) -> bool:
    file_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    return choose_io(file_bytes, psutil.virtual_memory().available) == "direct"


def _bytes_of(buffer: Tensor) -> memoryview:
    """The memory of a flat byte tensor, writable and without torch's bookkeeping."""
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous() or buffer.device.type != "cpu":
        raise ValueError(f"expected a flat uint8 tensor in host memory, got {buffer.dtype} {tuple(buffer.shape)}")
    return buffer.numpy().data


def _copy(one: ByteRange, stored: memoryview, place: memoryview) -> None:
    """Copy or cast one range; nearly all of it runs without the GIL."""
    if not one.is_cast:
        np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(stored, np.uint8))
        return
    if one.file_offset % one.itemsize:  # torch requires aligned elements; rare, so copied once more
        stored = memoryview(bytearray(stored))
    source = torch.frombuffer(stored, dtype=TORCH_DTYPES[one.stored_dtype])
    target = torch.frombuffer(place, dtype=one.buffer_dtype)
    for values, places in zip(source.split(SERIAL_ELEMENTS), target.split(SERIAL_ELEMENTS)):
        places.copy_(values)
        if places.dtype == torch.float16:
            _refuse_overflow(values, places)


def _refuse_overflow(values: Tensor, places: Tensor) -> None:
    """UnsupportedModelError for a weight that float16 cannot hold."""
    if torch.equal(places.isinf(), values.isinf()):
        return
    largest = values[values.isfinite()].abs().max().item()
    raise UnsupportedModelError(
        f"a weight of {largest:.3g} is beyond what float16 holds, 65504.\n"
        "  --dtype float32    computes in twice the bytes\n"
        "  --dtype bfloat16   where the device has it"
    )
