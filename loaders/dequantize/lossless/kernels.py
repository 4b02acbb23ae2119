"""Restores weights from codes and rests on a GPU: one launch, and another for the weights that are stored apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import DTYPES, MatrixStack, at, member_size, no_tensor, store
from loaders.dequantize.lossless.plain import FLOATS
from loaders.formats.schemes import Lossless
from loaders.lossless.bins import BLOCK as WEIGHTS
from loaders.lossless.bins import GROUP, KINDS, Bins


@triton.jit
def _sum(one, other):
    return one + other


@triton.jit
def _plane(stored_at, count, weight, BITS: tl.constexpr, SHIFT: tl.constexpr):
    """Numbers from the plane of BITS bits that lies behind SHIFT bits of each of `count` numbers."""
    bit = weight * BITS
    byte = tl.load(stored_at + count // 8 * SHIFT + bit // 8).to(tl.int32)
    return ((byte >> (bit % 8).to(tl.int32)) & ((1 << BITS) - 1)) << SHIFT


@triton.jit
def _numbers(stored_at, count, weight, BITS: tl.constexpr):
    """Numbers of up to 8 bits from their planes, the widest first."""
    if BITS == 8:
        return tl.load(stored_at + weight).to(tl.int32)
    value = weight.to(tl.int32) * 0
    if BITS & 4:
        value += _plane(stored_at, count, weight, 4, 0)
    if BITS & 2:
        value += _plane(stored_at, count, weight, 2, BITS & 4)
    if BITS & 1:
        value += _plane(stored_at, count, weight, 1, BITS & 6)
    return value


@triton.jit
def _start_of(number, WIDTH_1, COUNT_1, WIDTH_2, COUNT_2, WIDTH_3):
    """The least distance in a bin: so many bins are so wide, then so many, then all."""
    second = tl.maximum(number - COUNT_1, 0)
    third = tl.maximum(second - COUNT_2, 0)
    return tl.minimum(number, COUNT_1) * WIDTH_1 + tl.minimum(second, COUNT_2) * WIDTH_2 + third * WIDTH_3


@triton.jit
def _lossless(
    code_at, top_at, begin_at, fixed_at, further_at, out_at, routed_at,
    weights, columns, further_bytes, together, out_expert, out_matrix, out_row, out_column, base,
    BITS: tl.constexpr, FIXED: tl.constexpr, SHIFT: tl.constexpr, LOW: tl.constexpr, ZERO: tl.constexpr,
    WIDTH_1: tl.constexpr, COUNT_1: tl.constexpr, WIDTH_2: tl.constexpr, COUNT_2: tl.constexpr, WIDTH_3: tl.constexpr,
    MORE_1: tl.constexpr, MORE_2: tl.constexpr, MORE_3: tl.constexpr, MORE_LOW: tl.constexpr,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, GROUP: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """One program restores a block of WEIGHTS weights, whose further bits begin at a stored place."""
    matrix = tl.program_id(1).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    block = tl.program_id(0).to(tl.int64)
    weight = block * WEIGHTS + tl.arange(0, WEIGHTS)
    code = _numbers(code_at + matrix * (weights // 8 * BITS), weights, weight, BITS)
    number = code & LOW
    length = tl.where(number < COUNT_1, MORE_1, tl.where(number < COUNT_1 + COUNT_2, MORE_2, MORE_3))
    length = tl.where(number == LOW, MORE_LOW, length)
    bit = tl.load(begin_at + matrix * (weights // WEIGHTS) + block) + tl.associative_scan(length, 0, _sum) - length
    byte = tl.minimum(tl.maximum(bit >> 3, 0), further_bytes - 2)
    stream_at = further_at + matrix * further_bytes
    window = tl.load(stream_at + byte).to(tl.int32) | (tl.load(stream_at + byte + 1).to(tl.int32) << 8)
    further = (window >> (bit & 7)) & ((1 << length) - 1)
    rest = _numbers(fixed_at + matrix * (weights // 8 * FIXED), weights, weight, FIXED) + (further << FIXED)
    stored_top = tl.load(top_at + matrix * (weights // GROUP) + weight // GROUP).to(tl.int32)
    distance = _start_of(number, WIDTH_1, COUNT_1, WIDTH_2, COUNT_2, WIDTH_3) + rest
    pattern = ((stored_top + base) << SHIFT) - 1 - distance
    pattern = tl.where((number == LOW) & (rest == ZERO), 0, pattern)
    pattern |= (code >> (BITS - 1)) << 15
    value = pattern.to(tl.int16).to(KEPT, bitcast=True).to(tl.float32)
    place = at(
        out_at, matrix, weight // columns, weight % columns, together, out_expert, out_matrix, out_row, out_column
    )
    store(place, value, weight < weights, KEPT)


@triton.jit
def _apart(
    places_at, apart_at, out_at, routed_at, weights, columns, entries, together,
    out_expert, out_matrix, out_row, out_column,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(1).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    entry = tl.program_id(0) * WEIGHTS + tl.arange(0, WEIGHTS)
    inside = entry < entries
    weight = tl.load(places_at + matrix * entries + entry, inside, 0).to(tl.int64)
    weight = tl.minimum(tl.maximum(weight, 0), weights - 1)
    value = tl.load(apart_at + matrix * entries + entry, inside, 0.0).to(tl.float32)
    place = at(
        out_at, matrix, weight // columns, weight % columns, together, out_expert, out_matrix, out_row, out_column
    )
    store(place, value, inside, KEPT)


def lossless(scheme: Lossless, operands: Mapping[str, Tensor], matrix: MatrixStack) -> None:
    """operands: the fields of `loaders.lossless.encode.Encoded`, [members, …] where they are stacked."""
    bins, weights = Bins(KINDS[scheme.dtype], scheme.bits), matrix.rows * matrix.columns
    (width_1, count_1), (width_2, count_2), (width_3, _) = _three_runs(bins)
    more = [width.bit_length() - 1 - bins.fixed for width in (width_1, width_2, width_3, bins.widths[-1])]
    further, apart = operands["further"], operands["apart"]
    routed = no_tensor(matrix.routed, operands["top"])
    _lossless[(weights // WEIGHTS, matrix.count)](
        operands["code"], operands["top"], operands["begin"], operands["fixed"], further, matrix.tensor, routed,
        weights, matrix.columns, member_size(further, matrix.count), *matrix.place, bins.kind.base,
        BITS=bins.bits, FIXED=bins.fixed, SHIFT=bins.kind.shift, LOW=bins.low, ZERO=bins.zero,
        WIDTH_1=width_1, COUNT_1=count_1, WIDTH_2=width_2, COUNT_2=count_2, WIDTH_3=width_3,
        MORE_1=more[0], MORE_2=more[1], MORE_3=more[2], MORE_LOW=more[3],
        KEPT=DTYPES[apart.dtype], PER_HIT=matrix.per_hit, WEIGHTS=WEIGHTS, GROUP=GROUP, num_warps=1,
    )  # fmt: skip
    entries = member_size(apart, matrix.count)
    _apart[(triton.cdiv(entries, WEIGHTS), matrix.count)](
        operands["apart_at"], apart, matrix.tensor, routed, weights, matrix.columns, entries, *matrix.place,
        KEPT=DTYPES[apart.dtype], PER_HIT=matrix.per_hit, WEIGHTS=WEIGHTS, num_warps=1,
    )  # fmt: skip


@triton.jit
def _approximate(
    code_at, top_at, out_at, weights, base, low_middle,
    BITS: tl.constexpr, SHIFT: tl.constexpr, LOW: tl.constexpr,
    WIDTH_1: tl.constexpr, COUNT_1: tl.constexpr, WIDTH_2: tl.constexpr, COUNT_2: tl.constexpr, WIDTH_3: tl.constexpr,
    KEPT: tl.constexpr, GROUP: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Of each weight the middle of its bin."""
    matrix = tl.program_id(1).to(tl.int64)
    weight = tl.program_id(0).to(tl.int64) * WEIGHTS + tl.arange(0, WEIGHTS)
    code = _numbers(code_at + matrix * (weights // 8 * BITS), weights, weight, BITS)
    number = code & LOW
    width = tl.where(number < COUNT_1, WIDTH_1, tl.where(number < COUNT_1 + COUNT_2, WIDTH_2, WIDTH_3))
    middle = _start_of(number, WIDTH_1, COUNT_1, WIDTH_2, COUNT_2, WIDTH_3) + width // 2
    middle = tl.where(number == LOW, low_middle, middle)
    top = (tl.load(top_at + matrix * (weights // GROUP) + weight // GROUP).to(tl.int32) + base) << SHIFT
    pattern = tl.maximum(top, low_middle + 1) - 1 - middle
    pattern |= (code >> (BITS - 1)) << 15
    value = pattern.to(tl.int16).to(KEPT, bitcast=True).to(tl.float32)
    store(out_at + matrix * weights + weight, value, weight < weights, KEPT)


def approximate(bins: Bins, code: Tensor, top: Tensor, out: Tensor, count: int = 1) -> None:
    """Fill `out` (flat, any float dtype) with weights of which only `code` and `top` are known, of `count` matrices."""
    weights = out.numel() // count
    (width_1, count_1), (width_2, count_2), (width_3, _) = _three_runs(bins)
    with torch.cuda.device_of(out):
        _approximate[(weights // WEIGHTS, count)](
            code, top, out, weights, bins.kind.base, bins.middles[-1],
            BITS=bins.bits, SHIFT=bins.kind.shift, LOW=bins.low,
            WIDTH_1=width_1, COUNT_1=count_1, WIDTH_2=width_2, COUNT_2=count_2, WIDTH_3=width_3,
            KEPT=DTYPES[FLOATS[bins.kind.name]], GROUP=GROUP, WEIGHTS=WEIGHTS, num_warps=1,
        )  # fmt: skip


def _three_runs(bins: Bins) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    first, *others = bins.runs
    second, third = others if len(others) == 2 else ((first[0], 0), *others)
    return first, second, third
