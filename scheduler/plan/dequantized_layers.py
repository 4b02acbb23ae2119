"""Packed layers that are decoded once, while they are loaded, in memory that the plan would leave unused.

Decoding before every use writes what computing then reads: packed weights cost a pass more than plain ones do. So where
nothing streams, what memory is left goes to decoded layers. Where layers stream it goes to packed ones that then need
not, which saves more: a link takes some 20 times as long for a byte as a GPU's memory does.
"""

from dataclasses import dataclass, replace

from loaders.checkpoint.spec import ModelSpec
from scheduler.plan.memory import PlanItem
from scheduler.plan.request import PlanRequest


@dataclass(frozen=True)
class DecodedLayers:
    """How many of the first layers of each model are decoded for good."""

    target: int = 0
    draft: int = 0

    def of(self, request: PlanRequest) -> PlanRequest:
        """`request` as it is once they are decoded."""
        draft = request.draft.with_decoded(self.draft) if request.draft else None
        return replace(request, spec=request.spec.with_decoded(self.target), draft=draft)


NONE_DECODED = DecodedLayers()


def decoded_layers(request: PlanRequest, room: int) -> DecodedLayers:
    """As many as `room` bytes of the device's memory hold, the draft's first: its passes are the most."""
    room -= loading_item(request).device_bytes
    draft, room = _fitting(request.draft, room) if request.draft else (0, room)
    target, room = _fitting(request.spec, room)
    return DecodedLayers(target, draft)


def loading_item(request: PlanRequest) -> PlanItem:
    """While layers are decoded, the packed bytes of one lie beside what was decoded.

    Those to come lie there too, and may be the larger ones: float32 that is computed with in 16 bits.
    """
    packed = [layer for model in request.models for layer in model.layers if layer.packed_bytes]
    shrinking = sum(max(0, layer.nbytes - layer.decoded.nbytes) for layer in packed)
    largest = max((layer.nbytes for layer in packed), default=0)
    return PlanItem("a packed layer, while it is decoded", largest + shrinking)


def _fitting(spec: ModelSpec, room: int) -> tuple[int, int]:
    """The layers that fit, counted up to the last packed one, and the room that is left behind them.

    With the last one goes the memory that layers are decoded in before use.
    """
    packed = [number for number, layer in enumerate(spec.layers, start=1) if layer.packed_bytes]
    count, left = 0, room
    for number in packed:
        layer = spec.layers[number - 1]
        left -= layer.decoded.nbytes - layer.nbytes
        left += spec.decode_bytes - spec.embeddings_and_head_decode_bytes if number == packed[-1] else 0
        if left < 0:
            break
        count, room = number, left
    return count, room
