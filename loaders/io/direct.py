"""Parallel reads of file ranges into aligned memory, bypassing the page cache if possible. Needs no torch.

One thread reading with O_DIRECT leaves a disk idle between requests; eight threads with 4 MiB each keep it busy, for a
third of the CPU time of buffered reads, and weights larger than the page cache do not flush it.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loaders.errors import ModelFilesError

DISK_BLOCK = 4096  # O_DIRECT requires offset, length and address at multiples of the disk's block: 512 or 4096
THREADS = 8
CHUNK_BYTES = 4 << 20
MAX_VIEWS = 1024  # IOV_MAX: the most views one preadv takes

_O_DIRECT = getattr(os, "O_DIRECT", None)  # absent on macOS
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)

Item = TypeVar("Item")


def round_up(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 4096."""
    return -(-nbytes // DISK_BLOCK) * DISK_BLOCK


def aligned_memory(nbytes: int) -> memoryview:
    """Zeroed, page-aligned memory of `nbytes` rounded up to whole blocks; freed with its last view.

    Uses huge pages if the system grants them: a disk request has a limited number of memory segments, so scattered
    4 KiB pages make them small (virtio disk, 4 threads with 8 MiB each: 0.65 GB/s from small pages, 1.55 from huge).
    """
    memory = mmap.mmap(-1, round_up(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class OpenFile:
    """A file held open for reading; `direct` says whether its reads bypass the page cache.

    Reads raise ModelFilesError, naming file and offset, when the file ends too early or the disk fails.
    """

    def __init__(self, path: Path, direct: bool) -> None:
        """Open `path`, for direct reads if wanted and possible."""
        self.path = path
        try:
            descriptor = _open_direct(path) if direct else None
            self.direct = descriptor is not None
            self._descriptor = os.open(path, os.O_RDONLY) if descriptor is None else descriptor
        except OSError as error:
            raise ModelFilesError(f"{path}: cannot be read: {error.strerror}.") from error

    @property
    def nbytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, start: int, stop: int, memory: memoryview) -> memoryview:
        """Read bytes [start, stop) into `memory`, which is aligned and two blocks longer; returns a view of them.

        The view begins at start % 4096, so data aligned in the file is aligned in memory.
        """
        lead = start % DISK_BLOCK
        view = memory[lead : lead + stop - start]
        if self.direct:
            self._read_blocks(memory, start - lead, stop)
        else:
            self.read_into([view], start)
        return view

    def read_into(self, views: Sequence[memoryview], start: int) -> None:
        """Fill `views` in order with the bytes from `start` on; not for direct files, which need `read`."""
        offset, stop = start, start + sum(map(len, views))
        while offset < stop:
            count = self._preadv(views[:MAX_VIEWS], offset)
            if count == 0:
                raise self._ends_early(start, stop)
            offset += count
            views = _without_first(views, count)

    def _read_blocks(self, memory: memoryview, start: int, stop: int) -> None:
        """Read whole blocks from `start` (aligned) until `stop` is reached."""
        offset, end = start, round_up(stop)
        while offset < stop:
            count = self._preadv([memory[offset - start : end - start]], offset)
            offset += count
            if offset < stop and (count == 0 or offset % DISK_BLOCK):  # only the end of a file can end inside a block
                raise self._ends_early(start, stop)

    def _preadv(self, views: Sequence[memoryview], offset: int) -> int:
        try:
            return os.preadv(self._descriptor, views, offset)
        except OSError as error:
            raise ModelFilesError(f"{self.path}: reading at byte {offset:,} failed: {error.strerror}.") from error

    def _ends_early(self, start: int, stop: int) -> ModelFilesError:
        return ModelFilesError(
            f"{self.path}: bytes {start:,} to {stop:,} are needed, but the file ends at byte {self.nbytes:,}. "
            "It is truncated or still being written: fetch it again."
        )

    def drop_cached(self, start: int, stop: int) -> None:
        """Ask the system to drop clean pages of [start, stop) from the page cache. Direct reads bypass it anyway."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path) -> int | None:
    """A descriptor whose reads bypass the page cache, or None where the filesystem refuses (tmpfs, some overlays)."""
    if _O_DIRECT is None:
        return None
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | _O_DIRECT)
        os.preadv(descriptor, [aligned_memory(DISK_BLOCK)], 0)  # some refuse only at the first read
        return descriptor
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if error.errno in _REFUSALS:
            return None
        raise


def _without_first(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """The rest of `views` after their first `count` bytes."""
    left = []
    for view in views:
        if count < len(view):
            left.append(view[count:])
        count = max(count - len(view), 0)
    return left


class FileTable:
    """Several files opened once and closed together. Indexed by path."""

    def __init__(self, paths: Iterable[Path], direct: bool) -> None:
        self._files: dict[Path, OpenFile] = {}
        try:
            for path in paths:
                if path not in self._files:
                    self._files[path] = OpenFile(path, direct)
        except ModelFilesError:
            self.close()
            raise

    def __getitem__(self, path: Path) -> OpenFile:
        return self._files[path]

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files.values())

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


class Workers:
    """Threads that process lists of reads; each has an aligned bounce buffer for one chunk of `chunk_bytes`."""

    def __init__(self, threads: int, chunk_bytes: int) -> None:
        self.threads = threads
        memory_bytes = round_up(chunk_bytes) + 2 * DISK_BLOCK
        self.bounce_bytes = threads * memory_bytes
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._memories: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        memory = aligned_memory(self.bounce_bytes)  # one allocation, so that huge pages fit
        for start in range(0, self.bounce_bytes, memory_bytes):
            self._memories.put(memory[start : start + memory_bytes])

    def run(self, items: Sequence[Item], work: Callable[[Item, memoryview], None]) -> None:
        """Call `work(item, bounce buffer)` for every item, in parallel; each thread takes the next item.

        The first error stops the rest and is raised here, once no thread works on the items any more. Concurrent
        callers share the threads: the second's items start as the first's run out. Raises RuntimeError after `stop`.
        """
        left = iter(items)  # a list iterator gives each item to one thread only
        stop = threading.Event()

        def work_through() -> None:
            memory = self._memories.get_nowait()  # never empty: there is one per thread
            try:
                for item in left:
                    if stop.is_set() or self._stopped.is_set():
                        break
                    work(item, memory)
            finally:
                self._memories.put(memory)

        futures = [self._pool.submit(work_through) for _ in range(min(self.threads, len(items)))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            wait(futures)  # even if the caller is interrupted: no thread may write to its memory after this returns
        for future in futures:
            future.result()
        if self._stopped.is_set():
            raise RuntimeError("reading was stopped")

    def stop(self) -> None:
        """End current and later calls of `run` after the items in progress: the rest is not needed any more."""
        self._stopped.set()

    def close(self) -> None:
        """Wait for running work, then free the memory."""
        self._pool.shutdown()
        self._memories = queue.SimpleQueue()


Extent = tuple[OpenFile, int, int]  # file, first byte, byte after the last


@dataclass(frozen=True)
class ReadBandwidth:
    """A read measurement: its rate, whether it bypassed the page cache, and its bytes."""

    bytes_per_second: float
    direct: bool
    nbytes: int


def measure_read_bandwidth(
    paths: Iterable[Path],
    seconds: float = 0.5,
    threads: int = THREADS,
    chunk_bytes: int = CHUNK_BYTES,
    cached: bool = False,
) -> ReadBandwidth:
    """Measure the read rate: read the files for about `seconds`, the way weights are streamed.

    If a filesystem refuses direct reads, pages are dropped from the page cache and read again: `direct` is False then,
    and the rate too high if the pages stayed (a RAM disk, another process that maps them). With `cached`, reads go
    through the page cache, as for files that fit into it, and its pages stay.
    Raises ModelFilesError for files that are missing, unreadable or all empty.
    """
    with closing(FileTable(paths, direct=not cached)) as files, closing(Workers(threads, chunk_bytes)) as workers:
        extents = [extent for file in files for extent in _extents_of(file, chunk_bytes)]
        if not extents:
            raise ModelFilesError(f"no bytes to read in {', '.join(str(file.path) for file in files) or 'no files'}.")
        nbytes, elapsed = _timed_reads(workers, extents, seconds, cached)
        return ReadBandwidth(nbytes / elapsed, all(file.direct for file in files), nbytes)


def _extents_of(file: OpenFile, chunk_bytes: int) -> list[Extent]:
    end = file.nbytes
    return [(file, start, min(start + chunk_bytes, end)) for start in range(0, end, chunk_bytes)]


def _timed_reads(workers: Workers, extents: list[Extent], seconds: float, cached: bool) -> tuple[int, float]:
    """The bytes read from the start of `extents` in about `seconds`, and the seconds it really took."""
    counts: list[int] = []
    begin = time.perf_counter()

    def read(extent: Extent, memory: memoryview) -> None:
        if not counts or time.perf_counter() - begin < seconds:
            file, start, stop = extent
            if not cached:
                file.drop_cached(start, stop)
            counts.append(len(file.read(start, stop, memory)))

    workers.run(extents, read)
    return sum(counts), time.perf_counter() - begin
