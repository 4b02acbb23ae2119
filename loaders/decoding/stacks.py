"""Decodes a parameter, which one weight makes up, or several on top of each other, for the experts of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from loaders.decoding.plain import decode
from loaders.experts import hits_among
from loaders.formats.schemes import Scaled
from loaders.packed import Packed

Fused = Callable[..., None]


def decode_stack(packed: Packed, out: Tensor, chosen: Tensor | None = None) -> None:
    """Decode `packed.operands`, which must be bound, into `out` [packed.shape], on their device.

    chosen: numbers of experts, any integer tensor, where `out` is [experts, …]: others may be left as they are.
    """
    fused = fused_kernels() if out.is_cuda else None
    if fused and packed.uniform:
        hits = None if chosen is None else hits_among(chosen, packed.experts)
        fused(packed.scheme, packed.operands, packed.members_of(out), hits)
        return
    one = fused or decode
    if not packed.experts:
        one(packed.scheme, packed.operands, out)
        return
    for expert in range(packed.experts) if chosen is None or out.is_cuda else _numbers(chosen, packed.experts):
        _decode_expert(one, packed, out, expert)


def _decode_expert(one: Fused, packed: Packed, out: Tensor, expert: int) -> None:
    if not packed.stacked:
        part = slice(expert, expert + 1)
        one(packed.scheme, {role: tensor[part] for role, tensor in packed.operands.items()}, out[part])
        return
    weights, members = packed.members_of(out), len(packed.members) // packed.experts
    for index in range(expert * members, (expert + 1) * members):
        operands = {role: tensor[index] for role, tensor in packed.operands.items()}
        one(packed.members[index].scheme, operands, weights[index])


def _numbers(chosen: Tensor, experts: int) -> list[int]:
    return [number for number in chosen.unique().tolist() if 0 <= number < experts]


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
