"""Cuts a unit into spans of its flat buffer, so that it can be read and passed on piece by piece."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loaders.safetensors_files import STORED_ITEMSIZE
from loaders.sources import ByteRun, UnitSource
from loaders.spec import ALIGNMENT


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a unit's buffer, and the runs that fill them, their offsets counted from `start`."""

    start: int
    stop: int
    source: UnitSource

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def spans(source: UnitSource, nbytes: int, span_bytes: int) -> tuple[Span, ...]:
    """The spans of at most `span_bytes` (a multiple of 256) that cover every run of a buffer of `nbytes`, in order.

    Elements stay whole: tensors begin at multiples of 256, which is a whole number of elements of any dtype.
    """
    assert span_bytes % ALIGNMENT == 0
    cells: dict[int, list[ByteRun]] = defaultdict(list)
    for run in source.runs:
        for cell, part in _divided(run, span_bytes):
            cells[cell].append(part)
    return tuple(
        Span(cell * span_bytes, min((cell + 1) * span_bytes, nbytes), UnitSource(tuple(cells[cell])))
        for cell in sorted(cells)
    )


def _divided(run: ByteRun, span_bytes: int) -> Iterator[tuple[int, ByteRun]]:
    """The parts of a run, each with the number of the span it lies in and its offset there."""
    stored, placed = STORED_ITEMSIZE[run.stored_dtype], run.buffer_dtype.itemsize
    file_offset, place, left = run.file_offset, run.buffer_offset, run.nbytes // stored
    while left:
        cell = place // span_bytes
        count = min(left, ((cell + 1) * span_bytes - place) // placed)
        yield (
            cell,
            replace(run, file_offset=file_offset, nbytes=count * stored, buffer_offset=place - cell * span_bytes),
        )
        file_offset, place, left = file_offset + count * stored, place + count * placed, left - count
