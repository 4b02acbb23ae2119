"""Fused GPU kernels for scaled int8 and float8, 4-bit floats (NVFP4, MXFP4), and 4-bit codebooks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import BLOCK, DTYPES, MatrixStack, at, block_of, grid, member_size, no_tensor, store
from loaders.dequantize.plain import codebook_scales
from loaders.dequantize.values import scale_values
from loaders.formats.schemes import Codebook, Fp4, Scaled


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
def _power_of_two(exponent):
    """2^(exponent - 127) as float32; 255 is not a number."""
    bits = tl.where(exponent == 0, 0x400000, exponent << 23)
    return tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def _fp4(
    weight_at, scales_at, overall_at, out_at, routed_at,
    rows, columns, group, overall_size, together, out_expert, out_matrix, out_row, out_column,
    OVERALL: tl.constexpr, BY_COLUMN: tl.constexpr, IS_POWER: tl.constexpr,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """OVERALL: 1 to multiply scales by the global one, -1 to divide by it, 0 where there is none."""
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    if BY_COLUMN:
        at_byte = (matrix * (rows // 2) + row // 2) * columns + column
        at_scale = (matrix * (rows // group) + row // group) * columns + column
        shift = row % 2 * 4
    else:
        at_byte = (matrix * rows + row) * (columns // 2) + column // 2
        at_scale = (matrix * rows + row) * (columns // group) + column // group
        shift = column % 2 * 4
    code = (tl.load(weight_at + at_byte, inside, 0).to(tl.int16) >> shift.to(tl.int16)) & 15
    half = (((code & 7) << 9) | ((code & 8) << 12)).to(tl.int16).to(tl.float16, bitcast=True)
    stored = tl.load(scales_at + at_scale, inside, 0)
    scale = _power_of_two(stored.to(tl.int32)) if IS_POWER else _from_fp8(stored)
    if OVERALL != 0:
        overall = tl.load(overall_at + matrix * overall_size)
        scale = tl.div_rn(scale, overall) if OVERALL < 0 else scale * overall
    value = half.to(tl.float32) * 16384.0 * scale
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, KEPT)


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
    scales, kept = (scales, scales.dtype) if scales.dtype in DTYPES else scale_values(scales)
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
        KEPT=tl.float32 if scheme.in_float32 else DTYPES[kept],
        PER_HIT=out.per_hit,
        **BLOCK,
    )


def fp4(scheme: Fp4, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    weight, scales, overall = operands["weight"], operands["weight_scale"], operands.get("global_scale")
    is_power = scales.dtype != torch.float8_e4m3fn
    out = out.turned if scheme.input_major else out
    _fp4[grid(out)](
        weight,
        scales.view(torch.uint8),  # GPUs before Ada reject any kernel with float8 arguments
        no_tensor(overall, out.tensor),
        out.tensor,
        no_tensor(out.routed, out.tensor),
        out.rows,
        out.columns,
        scheme.group_size,
        member_size(overall, out.count),
        *out.place,
        OVERALL=0 if overall is None else -1 if scheme.divides else 1,
        BY_COLUMN=scheme.by_column,
        IS_POWER=is_power,
        KEPT=tl.float32 if scheme.in_float32 else tl.bfloat16,
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
