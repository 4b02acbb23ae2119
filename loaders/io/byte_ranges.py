"""Byte ranges: bytes a..b of a file that go to c..d of a buffer. They make up a layer on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loaders.adapters.merge import Update
from loaders.modules.layout import TORCH_DTYPES
from loaders.safetensors_files.headers import STORED_ITEMSIZE


@dataclass(frozen=True)
class ByteRange:
    """Contiguous stored elements that go to contiguous elements of a flat buffer.

    `nbytes` counts bytes on disk, in `stored_dtype` (safetensors' name: "BF16", "F32", ...); the range fills
    nbytes / itemsize(stored) elements of `buffer_dtype` from `buffer_offset` on. Where the two dtypes differ the
    values are cast on the way. Ranges that continue each other on disk and in the buffer are merged, so one may span
    several tensors. An adapter's `update` is added once the values are read, its elements from `update_start` on.
    """

    file: Path
    file_offset: int
    nbytes: int
    stored_dtype: str
    buffer_offset: int
    buffer_dtype: torch.dtype
    update: Update | None = None
    update_start: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element on disk."""
        return STORED_ITEMSIZE[self.stored_dtype]

    @property
    def is_cast(self) -> bool:
        """Whether the buffer holds the values in another dtype than the file."""
        return TORCH_DTYPES[self.stored_dtype] != self.buffer_dtype

    @property
    def file_stop(self) -> int:
        return self.file_offset + self.nbytes

    @property
    def buffer_bytes(self) -> int:
        return self.nbytes // self.itemsize * self.buffer_dtype.itemsize

    @property
    def buffer_stop(self) -> int:
        return self.buffer_offset + self.buffer_bytes

    def cut(self, length: Callable[[ByteRange], int]) -> Iterator[ByteRange]:
        """The range in pieces of whole elements; `length` gives the maximum for the first piece of a range."""
        rest = self
        while rest.nbytes:
            count = min(length(rest), rest.nbytes // self.itemsize)
            nbytes, buffer_bytes = count * self.itemsize, count * self.buffer_dtype.itemsize
            yield replace(rest, nbytes=nbytes)
            rest = replace(
                rest,
                file_offset=rest.file_offset + nbytes,
                nbytes=rest.nbytes - nbytes,
                buffer_offset=rest.buffer_offset + buffer_bytes,
                update_start=rest.update_start + count,
            )

    def moved(self, distance: int) -> ByteRange:
        """The same range, moved by `distance` in the buffer."""
        return replace(self, buffer_offset=self.buffer_offset + distance)


ByteRanges = tuple[ByteRange, ...]
"""The ranges that fill one buffer, sorted by file and offset."""


def in_file_order(ranges: Iterable[ByteRange]) -> ByteRanges:
    """Sort by file and offset, the order of reading."""
    return tuple(sorted(ranges, key=lambda one: (one.file, one.file_offset)))


def bytes_on_disk(ranges: Iterable[ByteRange]) -> int:
    """The bytes on disk that `ranges` read."""
    return sum(one.nbytes for one in ranges)
