"""Decodes a parameter, which one weight makes up, or several on top of each other."""

from __future__ import annotations

from torch import Tensor

from loaders.decoding.plain import decode
from loaders.packed import Packed


def decode_stack(packed: Packed, out: Tensor) -> None:
    """Decode `packed.operands`, which must be bound, into `out` [packed.shape], on their device."""
    count = len(packed.members)
    if count == 1:
        decode(packed.scheme, packed.operands, out)
        return
    weights = out.view(count, *packed.members[0].shape)
    for index in range(count):
        decode(packed.scheme, {role: tensor[index] for role, tensor in packed.operands.items()}, weights[index])
