"""Files out of the page cache, and how much of them is in it. Linux; needs nothing but the standard library."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> None:
    """Ask the kernel to drop the files' pages. What a process has mapped and touched stays, by the kernel's rules."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a page that is still to be written would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_bytes(files: Iterable[Path]) -> int:
    """Bytes of the files that lie in the page cache."""
    return sum(_cached_bytes(file) for file in files)


def _cached_bytes(file: Path) -> int:
    nbytes = file.stat().st_size
    if nbytes == 0:
        return 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(memory)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(nbytes), pages)
        error = ctypes.get_errno()
        del first  # else the mapping could not be closed
    if failed:
        raise OSError(error, f"mincore: {os.strerror(error)}", str(file))
    return min(nbytes, mmap.PAGESIZE * bytes(pages).translate(_LOWEST_BIT).count(1))


_LOWEST_BIT = bytes(value & 1 for value in range(256))  # the other bits of a page's byte mean nothing
