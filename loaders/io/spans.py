"""Spans of a layer's flat buffer, so that it can be read and passed on piece by piece."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from loaders.checkpoint.spec import BUFFER_ALIGNMENT, aligned
from loaders.io.byte_ranges import ByteRange, ByteRanges, bytes_on_disk, in_file_order


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a buffer, and the ranges that fill them, their offsets counted from `start`."""

    start: int
    stop: int
    ranges: ByteRanges

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def nbytes_on_disk(self) -> int:
        return bytes_on_disk(self.ranges)


PlacedSpans = Sequence[tuple[int, Span]]
"""Spans read in one go into a buffer of their own: (offset there, span)."""


def spans(ranges: ByteRanges, nbytes: int, span_bytes: int, border: int = 0) -> tuple[Span, ...]:
    """The spans of at most `span_bytes` (a multiple of 256) that cover every range of a buffer of `nbytes`, in order.

    None of them lies on both sides of `border` (a multiple of 256).
    """
    assert span_bytes % BUFFER_ALIGNMENT == 0 and border % BUFFER_ALIGNMENT == 0
    return spans_from(ranges, (*range(0, border, span_bytes), *range(border, nbytes, span_bytes)), nbytes)


def spans_from(ranges: ByteRanges, starts: Sequence[int], nbytes: int) -> tuple[Span, ...]:
    """The spans that begin at `starts`, in rising order from 0 on, and end where the next begins; without empty ones.

    Elements must stay whole: tensors begin at multiples of 256, which is a whole number of elements of any dtype.
    """
    stops = (*starts[1:], nbytes)

    def span_of(one: ByteRange) -> int:
        return bisect_right(starts, one.buffer_offset) - 1

    def up_to_stop(rest: ByteRange) -> int:
        return (stops[span_of(rest)] - rest.buffer_offset) // rest.buffer_dtype.itemsize

    by_span: dict[int, list[ByteRange]] = defaultdict(list)
    for whole in ranges:
        for one in whole.cut(up_to_stop):
            by_span[span_of(one)].append(one.moved(-starts[span_of(one)]))
    return tuple(Span(starts[index], stops[index], tuple(by_span[index])) for index in sorted(by_span))


def joined(placed: Iterable[tuple[int, Span]]) -> ByteRanges:
    """What fills several spans at once, each at the given offset of a buffer."""
    return in_file_order(one.moved(offset) for offset, span in placed for one in span.ranges)


def batches(wanted: Iterable[Span], nbytes: int) -> list[PlacedSpans]:
    """Spans in batches that each fit into a buffer of `nbytes` (a multiple of 256); larger spans are cut."""
    found: list[list[tuple[int, Span]]] = []
    end = nbytes
    for whole in wanted:
        for piece in spans(whole.ranges, whole.nbytes, nbytes):
            if end + piece.nbytes > nbytes:
                found.append([])
                end = 0
            found[-1].append((end, replace(piece, start=whole.start + piece.start, stop=whole.start + piece.stop)))
            end = aligned(end + piece.nbytes)
    return list(found)
