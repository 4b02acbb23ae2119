"""Groups byte ranges into read requests: whole elements, cells of a fixed grid, small tensors together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from loaders.io.byte_ranges import ByteRange, ByteRanges

MAX_GAP_BYTES = 1 << 16  # reading unneeded bytes (a stored inv_freq) is cheaper than one more request


@dataclass(frozen=True)
class ReadRequest:
    """One read: consecutive ranges of a file, at most small gaps between them."""

    ranges: ByteRanges

    @property
    def file(self) -> Path:
        return self.ranges[0].file

    @property
    def start(self) -> int:
        return self.ranges[0].file_offset

    @property
    def stop(self) -> int:
        return self.ranges[-1].file_stop

    @property
    def fits_in_place(self) -> bool:
        """Whether the bytes can be read straight into the buffer: no casts, no gaps."""
        seamless = all(left.file_stop == right.file_offset for left, right in pairwise(self.ranges))
        return seamless and not any(one.is_cast for one in self.ranges)


def read_requests(ranges: Iterable[ByteRange], grid_bytes: int) -> list[ReadRequest]:
    """The reads that cover `ranges` (sorted by file and offset).

    They end at multiples of `grid_bytes` in the file, so that direct reads overlap by one block at most, or at the end
    of an element that crosses one: they are up to an element longer than `grid_bytes`.
    """

    def up_to_grid(rest: ByteRange) -> int:
        return -(-(grid_bytes - rest.file_offset % grid_bytes) // rest.itemsize)

    groups: list[list[ByteRange]] = []
    for whole in ranges:
        assert whole.nbytes % whole.itemsize == 0, whole
        for one in whole.cut(up_to_grid):
            if groups and _joins(groups[-1][-1], one, grid_bytes):
                groups[-1].append(one)
            else:
                groups.append([one])
    return [ReadRequest(tuple(group)) for group in groups]


def _joins(left: ByteRange, right: ByteRange, grid_bytes: int) -> bool:
    """Whether `right` belongs to the read that `left` is in: same cell of the grid, and only a small gap."""
    same_cell = (left.file, left.file_offset // grid_bytes) == (right.file, right.file_offset // grid_bytes)
    return same_cell and 0 <= right.file_offset - left.file_stop <= MAX_GAP_BYTES
