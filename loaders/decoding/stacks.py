"""Decodes a parameter, which one weight makes up, or several on top of each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from loaders.decoding.plain import decode
from loaders.formats.schemes import Scaled, Scheme
from loaders.packed import Packed

Fused = Callable[[Scheme, Mapping[str, Tensor], Tensor], None]


def decode_stack(packed: Packed, out: Tensor) -> None:
    """Decode `packed.operands`, which must be bound, into `out` [packed.shape], on their device."""
    fused, count = fused_kernels() if out.is_cuda else None, len(packed.members)
    one, weights = fused or decode, out if count == 1 else out.view(count, *packed.members[0].shape)
    if count == 1 or (fused and packed.uniform):
        one(packed.scheme, packed.operands, weights)
        return
    for index, member in enumerate(packed.members):
        one(member.scheme, {role: tensor[index] for role, tensor in packed.operands.items()}, weights[index])


def decode_rows(scheme: Scheme, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """Decode some rows of one weight, on the device of `out`."""
    fused = fused_kernels() if out.is_cuda else None
    (fused or decode)(scheme, {role: tensor.to(out.device) for role, tensor in operands.items()}, out)


@cache
def fused_kernels() -> Fused | None:
    """Decoding by fused kernels where those work: they need triton, and triton needs a C compiler once."""
    try:
        from loaders.decoding.kernels import decode_fused

        ones, scale = (torch.ones(1, 1, dtype=dtype, device="cuda") for dtype in (torch.int8, torch.float32))
        decode_fused(Scaled(1, 1), {"weight": ones, "weight_scale": scale}, torch.empty_like(scale))
    except (ImportError, RuntimeError, OSError) as error:
        warnings.warn(f"packed weights are decoded without fused kernels, which is slower: {error}", stacklevel=2)
        return None
    return decode_fused
