"""Splits a layer with experts: the part that every pass needs, and the part of each expert, for passes routed to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loaders.io.byte_ranges import ByteRanges
from loaders.io.spans import Span, spans_from
from loaders.modules.skeleton import UnitLayout


@dataclass(frozen=True)
class ExpertParts:
    """`dense` is the first span of the layer's buffer; `by_expert` are each expert's spans after it, one per tensor."""

    dense: Span
    by_expert: tuple[tuple[Span, ...], ...]

    def of(self, experts: Iterable[int]) -> list[Span]:
        """All spans of these experts."""
        return [span for expert in experts for span in self.by_expert[expert]]


def split_experts(layer: UnitLayout, ranges: ByteRanges) -> ExpertParts | None:
    """The parts of a layer that `ranges` fill; None if it has no experts."""
    if layer.experts is None:
        return None
    count, places = layer.experts.count, layer.layout.places[-layer.expert_places :]
    assert all(place.shape[0] % count == 0 for place in places), places
    starts = [place.offset + expert * (place.nbytes // count) for place in places for expert in range(count)]
    dense, *slices = spans_from(ranges, (0, *starts), layer.layout.nbytes)
    assert dense.start == 0 and [part.start for part in slices] == starts, "every expert has bytes in every tensor"
    return ExpertParts(dense, tuple(tuple(slices[expert::count]) for expert in range(count)))
