"""Fused GPU dequantization of packed integers: AWQ, GPTQ and compressed-tensors, in one kernel.

Each value loads its word, zero point and scale. Neighbours share them, so they come from the L1 cache, and memory reads
the packed bytes once and writes the result once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import BLOCK, DTYPES, MatrixStack, at, block_of, grid, member_size, no_tensor, store
from loaders.formats.schemes import Awq, Gptq, Words

AWQ, GPTQ, WORDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _decode(
    words_at, zeros_at, scales_at, groups_at, out_at, routed_at,
    rows, columns, group_size, scale_columns,
    words_size, zeros_size, scales_size, groups_size, together, out_expert, out_matrix, out_row, out_column,
    LAYOUT: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, LESS_ONE: tl.constexpr, ORDERED: tl.constexpr,
    KEPT: tl.constexpr, PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of one matrix: rows are inputs and columns outputs; with WORDS it is the other way round."""
    PER_WORD: tl.constexpr = 32 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    ONES: tl.constexpr = 0x11111111 if BITS == 4 else 0x01010101
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    words_at += matrix * words_size
    zeros_at += matrix * zeros_size
    scales_at += matrix * scales_size
    groups_at += matrix * groups_size
    per_row = columns // PER_WORD

    if LAYOUT == WORDS:
        word = tl.load(words_at + row * per_row + column // PER_WORD, inside, 0)
        shift = column % PER_WORD * BITS
        group = column // group_size if ORDERED else tl.load(groups_at + column, column < columns, 0)
        scale = tl.load(scales_at + row * scale_columns + group, inside, 0.0)
        if HAS_ZEROS:
            zero = tl.load(zeros_at + row // PER_WORD * scale_columns + group, inside, 0)
            zero = (zero >> (row % PER_WORD * BITS).to(tl.int32)) & MASK
        else:
            zero = 1 << (BITS - 1)
    else:
        if LAYOUT == AWQ:
            word = tl.load(words_at + row * per_row + column // PER_WORD, inside, 0)
            shift = (column % 8 // 2 + column % 2 * 4) * 4
            zero_shift = shift
        else:
            word = tl.load(words_at + row // PER_WORD * columns + column, inside, 0)
            shift = (row % PER_WORD * BITS).to(tl.int32)
            zero_shift = column % PER_WORD * BITS
        group = row // group_size if ORDERED else tl.load(groups_at + row, row < rows, 0).to(tl.int64)
        scale = tl.load(scales_at + group * columns + column, inside, 0.0)
        zero = tl.load(zeros_at + group * per_row + column // PER_WORD, inside, 0)
        if LESS_ONE:
            zero += ONES
        zero = (zero >> zero_shift) & MASK
    number = (word >> shift) & MASK
    value = (number - zero).to(tl.float32) * scale.to(tl.float32)
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, KEPT)


def awq(scheme: Awq, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    """`out` has K rows."""
    _launch(AWQ, 4, scheme.group_size, operands["qweight"], operands["qzeros"], operands["scales"], None, out.turned)


def gptq(scheme: Gptq, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    order = None if scheme.ordered else operands["g_idx"]
    words, zeros, scales = operands["qweight"], operands["qzeros"], operands["scales"]
    less_one = scheme.zeros_less_one
    _launch(GPTQ, scheme.bits, scheme.group_size, words, zeros, scales, order, out.turned, less_one)


def words(scheme: Words, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    order = None if scheme.ordered else operands["weight_g_idx"]
    packed, scales = operands["weight_packed"], operands["weight_scale"]
    _launch(WORDS, scheme.bits, scheme.group_size, packed, operands.get("weight_zero_point"), scales, order, out)


def _launch(
    layout: Any,
    bits: int,
    group_size: int,
    words: Tensor,
    zeros: Tensor | None,
    scales: Tensor,
    order: Tensor | None,
    out: MatrixStack,
    less_one: bool = False,
) -> None:
    scale_columns = out.columns // group_size if member_size(scales, out.count) > 1 else 0
    _decode[grid(out)](
        words,
        no_tensor(zeros, words),
        scales,
        no_tensor(order, words),
        out.tensor,
        no_tensor(out.routed, out.tensor),
        out.rows,
        out.columns,
        group_size,
        scale_columns,
        *(member_size(tensor, out.count) for tensor in (words, zeros, scales, order)),
        *out.place,
        LAYOUT=layout,
        BITS=bits,
        HAS_ZEROS=zeros is not None,
        LESS_ONE=less_one,
        ORDERED=order is None,
        KEPT=DTYPES[scales.dtype],
        PER_HIT=out.per_hit,
        **BLOCK,
    )
