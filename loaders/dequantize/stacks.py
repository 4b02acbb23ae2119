"""Dequantizes a parameter of one weight, or of several stacked ones for the experts of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from loaders.dequantize.ggml.codebooks import has_codebook, tables_of
from loaders.dequantize.lossless.plain import approximate, numbers_by_byte
from loaders.dequantize.plain import decode
from loaders.dequantize.toolchain import why_no_kernels
from loaders.formats.schemes import Ggml, Pieces, Scaled, Scheme
from loaders.lossless.bins import Bins
from loaders.modules.experts import routed_among
from loaders.modules.quantized import Packed

Fused = Callable[..., None]
Product = Callable[[Bins, Tensor, Tensor, Tensor, Tensor | None], Tensor | None]


def prepare(scheme: Scheme, device: torch.device) -> None:
    """Copy what dequantizing looks up to the device beforehand: a copy could not be captured in a graph."""
    for each in (piece.scheme for piece in scheme.pieces) if isinstance(scheme, Pieces) else [scheme]:
        if isinstance(each, Ggml) and has_codebook(each.kind):
            tables_of(each.kind, device)


def prepare_code(bins: Bins, device: torch.device) -> None:
    """The same for `approximate_code`, whose kernel looks nothing up."""
    if device.type == "cuda" and not fused_kernels():
        numbers_by_byte(bins, device)


def decode_stack(packed: Packed, out: Tensor, chosen: Tensor | None = None) -> None:
    """Dequantize `packed.operands`, which must be bound, into `out` [packed.shape], on their device.

    chosen: expert indices, any integer tensor, if `out` is [experts, …]; other experts may be left unwritten.
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
        one(packed.scheme, {role: _among(tensor, part) for role, tensor in packed.operands.items()}, out[part])
        return
    weights = packed.members_of(out)[expert]
    for index, weight in enumerate(weights, expert * len(weights)):
        operands = {role: tensor[index] for role, tensor in packed.operands.items()}
        one(packed.members[index].scheme, operands, weight)


def _among(operand: Tensor, part: slice) -> Tensor:
    """An operand of some experts; a number that all of them share stays whole."""
    return operand if operand.numel() == 1 else operand[part]


def _numbers(chosen: Tensor, experts: int) -> list[int]:
    return [number for number in chosen.unique().tolist() if 0 <= number < experts]


def approximate_code(bins: Bins, code: Tensor, top: Tensor, out: Tensor, count: int = 1) -> None:
    """Fill `out` (flat, any float dtype) with weights of which only `code` and `top` are known, on their device.

    count: of matrices of one shape, whose codes and tops are stacked.
    """
    if out.is_cuda and fused_kernels():
        from loaders.dequantize.lossless.kernels import approximate as fused

        fused(bins, code, top, out, count)
        return
    for one in zip(*(tensor.view(count, -1) for tensor in (code, top, out))):
        approximate(bins, *one)


def code_product(device: torch.device) -> Product | None:
    """The kernel that multiplies a few rows by codes on a device, `product_kernel.multiply`; None where none works."""
    if device.type != "cuda" or not fused_kernels():
        return None
    from loaders.dequantize.lossless.product_kernel import multiply

    return multiply


def decode_rows(scheme: Scheme, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """Dequantize some rows of one weight, on the device of `out`."""
    fused = fused_kernels() if out.is_cuda else None
    (fused or decode)(scheme, {role: tensor.to(out.device) for role, tensor in operands.items()}, out)


@cache
def fused_kernels() -> Fused | None:
    """Uses the fused kernels where they work. `why_no_kernels` tells beforehand where they cannot."""
    if why_no_kernels():
        return None
    # Triton 3.9 warns unless this is set. Products are exact here, so fused multiply-adds give the same result.
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    try:
        from loaders.dequantize.kernels import decode_fused

        ones, scale = (torch.ones(1, 1, dtype=dtype, device="cuda") for dtype in (torch.int8, torch.float32))
        decode_fused(Scaled(1, 1), {"weight": ones, "weight_scale": scale}, torch.empty_like(scale))
    except Exception as error:  # no libcuda.so, a GPU unknown to Triton, a broken compiler: each raises its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"quantized weights are dequantized by plain torch, which is slower: {reason}", stacklevel=2)
        return None
    return decode_fused
