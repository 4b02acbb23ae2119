"""Quantized layers that are dequantized once, while they are loaded, into memory that the plan would leave unused.

Dequantizing before every use writes weights that the product then reads again, so it costs a pass time. If nothing
streams, the remaining memory therefore goes to dequantized layers. If layers stream, it goes to more resident quantized
layers, which saves more: a byte takes some 20 times as long over the link as in a GPU's memory.
"""

from dataclasses import dataclass, replace

from loaders.checkpoint.spec import ModelSpec
from scheduler.plan.memory import PlanItem
from scheduler.plan.request import PlanRequest


@dataclass(frozen=True)
class DecodedLayers:
    """How many of the first layers of each model are dequantized while loading."""

    target: int = 0
    draft: int = 0

    def of(self, request: PlanRequest) -> PlanRequest:
        """`request` with these layers dequantized."""
        draft = request.draft.with_decoded(self.draft) if request.draft else None
        return replace(request, spec=request.spec.with_decoded(self.target), draft=draft)


NONE_DECODED = DecodedLayers()


def decoded_layers(request: PlanRequest, room: int) -> DecodedLayers:
    """As many as fit in `room` bytes of device memory; the draft's come first, since it runs most passes."""
    room -= loading_item(request).device_bytes
    draft, room = _fitting(request.draft, room) if request.draft else (0, room)
    target, room = _fitting(request.spec, room)
    return DecodedLayers(target, draft)


def loading_item(request: PlanRequest) -> PlanItem:
    """While a layer is dequantized, its quantized bytes and its dequantized ones are both held.

    Layers still to come are held too, and can be larger than their dequantized form: float32 computed in 16 bits.
    """
    packed = [layer for model in request.models for layer in model.layers if layer.packed_bytes]
    shrinking = sum(max(0, layer.device_bytes - layer.decoded.nbytes) for layer in packed)
    largest = max((layer.device_bytes for layer in packed), default=0)
    return PlanItem("a packed layer, while it is decoded", largest + shrinking)


def _fitting(spec: ModelSpec, room: int) -> tuple[int, int]:
    """(the layers that fit, counted up to the last quantized one; the room they leave).

    With the last one, the buffer for dequantizing before use is no longer needed either.
    """
    if spec.copy_bits:
        return 0, room
    packed = [number for number, layer in enumerate(spec.layers, start=1) if layer.packed_bytes]
    count, left = 0, room
    for number in packed:
        layer = spec.layers[number - 1]
        left -= layer.decoded.nbytes - layer.device_bytes
        left += spec.decode_bytes - spec.embeddings_and_head_decode_bytes if number == packed[-1] else 0
        if left < 0:
            break
        count, room = number, left
    return count, room
