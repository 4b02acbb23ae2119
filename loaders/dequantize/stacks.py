"""Decodes a parameter, which one weight makes up, or several on top of each other, for the experts of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from loaders.dequantize.plain import decode
from loaders.dequantize.toolchain import why_no_kernels
from loaders.formats.schemes import Scaled, Scheme
from loaders.modules.experts import routed_among
from loaders.modules.quantized import Packed

Fused = Callable[..., None]


def decode_stack(packed: Packed, out: Tensor, chosen: Tensor | None = None) -> None:
    """Decode `packed.operands`, which must be bound, into `out` [packed.shape], on their device.

    chosen: numbers of experts, any integer tensor, where `out` is [experts, …]: others may be left as they are.
    """
    fused = fused_kernels() if out.is_cuda else None
    if fused and packed.uniform:
        routed = None if chosen is None else routed_among(chosen, packed.experts)
        fused(packed.scheme, packed.operands, packed.members_of(out), routed)
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
    weights = packed.members_of(out)[expert]
    for index, weight in enumerate(weights, expert * len(weights)):
        operands = {role: tensor[index] for role, tensor in packed.operands.items()}
        one(packed.members[index].scheme, operands, weight)


def _numbers(chosen: Tensor, experts: int) -> list[int]:
    return [number for number in chosen.unique().tolist() if 0 <= number < experts]


def decode_rows(scheme: Scheme, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """Decode some rows of one weight, on the device of `out`."""
    fused = fused_kernels() if out.is_cuda else None
    (fused or decode)(scheme, {role: tensor.to(out.device) for role, tensor in operands.items()}, out)


@cache
def fused_kernels() -> Fused | None:
    """Decoding by fused kernels where those work. Where `why_no_kernels` tells that they do not, it is known before."""
    if why_no_kernels():
        return None
    # Triton 3.9 warns whoever leaves its default open: fused or not, the products that are added to are exact here.
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    try:
        from loaders.dequantize.kernels import decode_fused

        ones, scale = (torch.ones(1, 1, dtype=dtype, device="cuda") for dtype in (torch.int8, torch.float32))
        decode_fused(Scaled(1, 1), {"weight": ones, "weight_scale": scale}, torch.empty_like(scale))
    except Exception as error:  # no libcuda.so, a GPU that triton does not know, a broken compiler: each has its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"quantized weights are dequantized by plain torch, which is slower: {reason}", stacklevel=2)
        return None
    return decode_fused
