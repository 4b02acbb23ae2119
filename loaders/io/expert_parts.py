"""Takes a unit with experts apart: what every pass needs of it, and what only those passes need that hit an expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loaders.checkpoint.spec import aligned
from loaders.io.sources import UnitSource
from loaders.io.spans import Span, joined, spans, spans_from
from loaders.modules.skeleton import Unit


@dataclass(frozen=True)
class ExpertParts:
    """`dense` is the first span of the unit's buffer; `by_expert` are those of each expert behind it, one a tensor."""

    dense: Span
    by_expert: tuple[tuple[Span, ...], ...]

    def of(self, experts: Iterable[int]) -> list[Span]:
        """All spans of some experts."""
        return [span for expert in experts for span in self.by_expert[expert]]


def split_experts(unit: Unit, source: UnitSource) -> ExpertParts | None:
    """The parts of a unit's bytes, whose runs `source` has; None where it has no experts."""
    if unit.experts is None:
        return None
    count, places = unit.experts.count, unit.layout.places[-unit.expert_places :]
    assert all(place.shape[0] % count == 0 for place in places), places
    starts = [place.offset + expert * (place.nbytes // count) for place in places for expert in range(count)]
    dense, *slices = spans_from(source, (0, *starts), unit.layout.nbytes)
    assert dense.start == 0 and [part.start for part in slices] == starts, "every expert has bytes in every tensor"
    return ExpertParts(dense, tuple(tuple(slices[expert::count]) for expert in range(count)))


@dataclass(frozen=True)
class Batch:
    """Spans that are read in one go, one after the other, into a buffer of their own: (offset there, span)."""

    placed: tuple[tuple[int, Span], ...]

    @property
    def source(self) -> UnitSource:
        return joined(self.placed)


def batches(wanted: Iterable[Span], nbytes: int) -> list[Batch]:
    """Spans in batches of at most `nbytes` (a multiple of 256); larger spans are cut."""
    found: list[list[tuple[int, Span]]] = []
    end = nbytes
    for span in (piece for whole in wanted for piece in _pieces(whole, nbytes)):
        if end + span.nbytes > nbytes:
            found.append([])
            end = 0
        found[-1].append((end, span))
        end = aligned(end + span.nbytes)
    return [Batch(tuple(placed)) for placed in found]


def _pieces(span: Span, nbytes: int) -> Iterator[Span]:
    for piece in spans(span.source, span.nbytes, nbytes):
        yield Span(span.start + piece.start, span.start + piece.stop, piece.source)
