"""Cuts the byte runs of a unit into reads: whole elements, whole cells of a fixed grid, small tensors together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from loaders.io.sources import ByteRun
from loaders.modules.layout import TORCH_DTYPES

MAX_GAP_BYTES = 1 << 16  # reading over bytes that nobody wants (a stored inv_freq) is cheaper than one more request


@dataclass(frozen=True)
class Piece:
    """Whole elements of one run: bytes [start, stop) of the file, and where they go in the buffer."""

    start: int
    stop: int
    stored_dtype: torch.dtype
    buffer_offset: int
    buffer_dtype: torch.dtype

    @property
    def is_cast(self) -> bool:
        return self.stored_dtype != self.buffer_dtype

    @property
    def buffer_stop(self) -> int:
        return self.buffer_offset + (self.stop - self.start) // self.stored_dtype.itemsize * self.buffer_dtype.itemsize


@dataclass(frozen=True)
class Chunk:
    """One read: consecutive pieces of a file, at most small gaps between them."""

    file: Path
    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        return self.pieces[0].start

    @property
    def stop(self) -> int:
        return self.pieces[-1].stop

    @property
    def fits_in_place(self) -> bool:
        """Whether the bytes can be read straight into the buffer: no casts, no gaps."""
        seamless = all(left.stop == right.start for left, right in pairwise(self.pieces))
        return seamless and not any(piece.is_cast for piece in self.pieces)


def cut(runs: Iterable[ByteRun], chunk_bytes: int) -> list[Chunk]:
    """The reads that cover `runs` (sorted by file and offset).

    Chunks end at multiples of `chunk_bytes` in the file, so that direct reads overlap by one block at most, or at the
    end of the element that lies across one: they are up to an element longer than `chunk_bytes`.
    """
    chunks: list[Chunk] = []
    file, pieces = Path(), list[Piece]()
    for run in runs:
        for piece in _pieces_of(run, chunk_bytes):
            if pieces and not (run.file == file and _joins(pieces[-1], piece, chunk_bytes)):
                chunks.append(Chunk(file, tuple(pieces)))
                pieces = []
            file = run.file
            pieces.append(piece)
    return [*chunks, Chunk(file, tuple(pieces))] if pieces else chunks


def _pieces_of(run: ByteRun, chunk_bytes: int) -> Iterator[Piece]:
    """The run, cut after the element that reaches or crosses each multiple of `chunk_bytes` in the file."""
    stored_dtype = TORCH_DTYPES[run.stored_dtype]
    size, end = stored_dtype.itemsize, run.file_offset + run.nbytes
    assert run.nbytes % size == 0, run
    start, target = run.file_offset, run.buffer_offset
    while start < end:
        cell_end = (start // chunk_bytes + 1) * chunk_bytes
        stop = min(start + -(-(cell_end - start) // size) * size, end)
        yield Piece(start, stop, stored_dtype, target, run.buffer_dtype)
        start, target = stop, target + (stop - start) // size * run.buffer_dtype.itemsize


def _joins(left: Piece, right: Piece, chunk_bytes: int) -> bool:
    """Whether `right` belongs to the read that `left` is in: same cell of the grid, and not far behind."""
    return left.start // chunk_bytes == right.start // chunk_bytes and 0 <= right.start - left.stop <= MAX_GAP_BYTES
