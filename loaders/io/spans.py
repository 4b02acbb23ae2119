"""Cuts a unit into spans of its flat buffer, so that it can be read and passed on piece by piece."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loaders.checkpoint.spec import ALIGNMENT
from loaders.io.sources import ByteRun, UnitSource


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a unit's buffer, and the runs that fill them, their offsets counted from `start`."""

    start: int
    stop: int
    source: UnitSource

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def spans(source: UnitSource, nbytes: int, span_bytes: int, border: int = 0) -> tuple[Span, ...]:
    """The spans of at most `span_bytes` (a multiple of 256) that cover every run of a buffer of `nbytes`, in order.

    None of them lies on both sides of `border` (a multiple of 256).
    """
    assert span_bytes % ALIGNMENT == 0 and border % ALIGNMENT == 0
    return spans_from(source, (*range(0, border, span_bytes), *range(border, nbytes, span_bytes)), nbytes)


def spans_from(source: UnitSource, starts: Sequence[int], nbytes: int) -> tuple[Span, ...]:
    """The spans that begin at `starts`, in rising order from 0 on, and end where the next begins; without empty ones.

    Elements must stay whole: tensors begin at multiples of 256, which is a whole number of elements of any dtype.
    """
    cells: dict[int, list[ByteRun]] = defaultdict(list)
    stops = (*starts[1:], nbytes)
    for run in source.runs:
        for cell, part in _divided(run, starts, stops):
            cells[cell].append(part)
    return tuple(Span(starts[cell], stops[cell], UnitSource(tuple(cells[cell]))) for cell in sorted(cells))


def joined(placed: Iterable[tuple[int, Span]]) -> UnitSource:
    """What fills several spans at once, each at the given offset of a buffer."""
    runs = (
        replace(run, buffer_offset=offset + run.buffer_offset) for offset, span in placed for run in span.source.runs
    )
    return UnitSource(tuple(sorted(runs, key=lambda run: (run.file, run.file_offset))))


def _divided(run: ByteRun, starts: Sequence[int], stops: Sequence[int]) -> Iterator[tuple[int, ByteRun]]:
    """The parts of a run, each with the number of the span it lies in and its offset there."""
    itemsize, place, first, stop = run.buffer_dtype.itemsize, run.buffer_offset, 0, run.buffer_bytes
    while first * itemsize < stop:
        cell = bisect_right(starts, place) - 1
        count = min(stop // itemsize - first, (stops[cell] - place) // itemsize)
        yield cell, run.part(first, count, place - starts[cell])
        first, place = first + count, place + count * itemsize
