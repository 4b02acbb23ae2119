"""Fused GPU kernels for scaled int8 and float8, MXFP4, and 4-bit codebooks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import BLOCK, DTYPES, MatrixStack, at, block_of, grid, member_size, no_tensor, store
from loaders.dequantize.plain import codebook_scales
from loaders.formats.schemes import Codebook, Mxfp4, Scaled


@triton.jit
def _from_fp8(codes):
    """e4m3 as float32, built from its bits, since GPUs before Ada cannot cast it."""
    bits = codes.to(tl.int16)
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def _scaled(
    weight_at, zeros_at, scales_at, out_at, routed_at,
    rows, columns, scale_rows, scale_columns, scales_per_row,
    weight_size, zeros_size, scales_size, together, out_expert, out_matrix, out_row, out_column, factor,
    IS_FP8: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_FACTOR: tl.constexpr,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    stored = tl.load(weight_at + matrix * weight_size + row * columns + column, inside, 0)
    at_scale = row // scale_rows * scales_per_row + column // scale_columns
    scale = tl.load(scales_at + matrix * scales_size + at_scale, inside, 0.0).to(tl.float32)
    value = _from_fp8(stored) if IS_FP8 else stored.to(tl.float32)
    if HAS_ZEROS:
        value -= tl.load(zeros_at + matrix * zeros_size + at_scale, inside, 0).to(tl.float32)
    value *= scale
    if HAS_FACTOR:
        value *= factor
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, KEPT)


@triton.jit
def _mxfp4(
    blocks_at, scales_at, out_at, routed_at, rows, columns, together, out_expert, out_matrix, out_row, out_column,
    PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    line = matrix * rows + row
    code = (tl.load(blocks_at + line * (columns // 2) + column // 2, inside, 0).to(tl.int16) >> (column % 2 * 4)) & 15
    half = (((code & 7) << 9) | ((code & 8) << 12)).to(tl.int16).to(tl.float16, bitcast=True)
    exponent = tl.load(scales_at + line * (columns // 32) + column // 32, inside, 127).to(tl.int32)
    bits = tl.where(exponent == 0, 0x400000, exponent << 23)
    bits = tl.where(exponent == 255, 0x7FC00000, bits)
    value = half.to(tl.float32) * 16384.0 * bits.to(tl.float32, bitcast=True)
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, tl.bfloat16)


@triton.jit
def _codebook(
    weight_at, table_at, scales_at, out_at, routed_at,
    rows, columns, block, scales_size, together, out_expert, out_matrix, out_row, out_column,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    index = row * columns + column
    byte = tl.load(weight_at + (matrix * rows * columns + index) // 2, inside, 0).to(tl.int32)
    code = tl.where(index % 2 == 0, byte >> 4, byte & 15)
    scale = tl.load(scales_at + matrix * scales_size + index // block, inside, 0.0)
    value = tl.load(table_at + matrix * 16 + code, inside, 0.0) * scale
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, KEPT)


def scaled(scheme: Scaled, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    weight, scales, zeros = operands["weight"], operands["weight_scale"], operands.get("weight_zero_point")
    is_fp8 = weight.dtype == torch.float8_e4m3fn
    if is_fp8:
        weight = weight.view(torch.uint8)  # GPUs before Ada reject any kernel with float8 arguments
    if scales.dtype not in DTYPES:  # exponents of powers of two, a byte each
        scales = scales.to(torch.float32)
    _scaled[grid(out)](
        weight,
        no_tensor(zeros, weight),
        scales,
        out.tensor,
        no_tensor(out.routed, out.tensor),
        out.rows,
        out.columns,
        scheme.rows,
        scheme.columns,
        triton.cdiv(out.columns, scheme.columns),
        *(member_size(tensor, out.count) for tensor in (weight, zeros, scales)),
        *out.place,
        scheme.factor,
        IS_FP8=is_fp8,
        HAS_ZEROS=zeros is not None,
        HAS_FACTOR=scheme.factor != 1,
        KEPT=tl.float32 if scheme.in_float32 else DTYPES[scales.dtype],
        PER_HIT=out.per_hit,
        **BLOCK,
    )


def mxfp4(scheme: Mxfp4, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    out = out.turned
    _mxfp4[grid(out)](
        operands["blocks"],
        operands["scales"],
        out.tensor,
        no_tensor(out.routed, out.tensor),
        out.rows,
        out.columns,
        *out.place,
        PER_HIT=out.per_hit,
        **BLOCK,
    )


def codebook(scheme: Codebook, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    scales = codebook_scales(scheme, operands)
    _codebook[grid(out)](
        operands["weight"],
        operands["weight.quant_map"],
        scales,
        out.tensor,
        no_tensor(out.routed, out.tensor),
        out.rows,
        out.columns,
        scheme.block,
        member_size(scales, out.count),
        *out.place,
        KEPT=DTYPES[getattr(torch, scheme.dtype)],
        PER_HIT=out.per_hit,
        **BLOCK,
    )
