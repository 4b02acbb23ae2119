"""Fused GPU dequantization of ggml's blocks, one kernel for all types.

Each value computes where its bytes are; see `ggml` for the layouts. Products of scales and integers are exact in
float32, so fused multiply-adds round as plain torch does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import BLOCK, MatrixStack, at, block_of, grid, member_size, no_tensor, store
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS


@triton.jit
def _small_block(bytes_at, halves_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block of 32 that begins at byte `block`."""
    HAS_MINIMUM: tl.constexpr = KIND == "Q4_1" or KIND == "Q5_1"
    HAS_FIFTH: tl.constexpr = KIND == "Q5_0" or KIND == "Q5_1"
    BITS_AT: tl.constexpr = 4 if HAS_MINIMUM else 2
    NIBBLES_AT: tl.constexpr = BITS_AT + (4 if HAS_FIFTH else 0)
    if KIND == "Q8_0":
        number = tl.load(bytes_at + block + 2 + i, inside, 0).to(tl.int8, bitcast=True).to(tl.int32)
    else:
        number = (tl.load(bytes_at + block + NIBBLES_AT + i % 16, inside, 0).to(tl.int32) >> (i // 16 * 4)) & 15
    if HAS_FIFTH:
        number |= ((tl.load(bytes_at + block + BITS_AT + i // 8, inside, 0).to(tl.int32) >> (i % 8)) & 1) << 4
    if KIND == "Q4_0":
        number -= 8
    if KIND == "Q5_0":
        number -= 16
    value = number.to(tl.float32) * tl.load(halves_at + block // 2, inside, 0.0).to(tl.float32)
    if HAS_MINIMUM:
        value += tl.load(halves_at + block // 2 + 1, inside, 0.0).to(tl.float32)
    return value


@triton.jit
def _large_block(bytes_at, halves_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block of 256 with minima that begins at byte `block`."""
    NIBBLES_AT: tl.constexpr = 48 if KIND == "Q5_K" else 16
    part, k = i // 32, i % 32
    number = (
        tl.load(bytes_at + block + NIBBLES_AT + part // 2 * 32 + k, inside, 0).to(tl.int32) >> (part % 2 * 4)
    ) & 15
    if KIND == "Q5_K":
        number |= ((tl.load(bytes_at + block + 16 + k, inside, 0).to(tl.int32) >> part) & 1) << 4
    # 12 bytes: scales 0 to 3, minima 0 to 3, and the low bits of both 4 to 7, whose 2 high bits are in the first 8
    first = part < 4
    low = tl.load(bytes_at + block + 4 + tl.where(first, part, part - 4), inside, 0).to(tl.int32)
    middle = tl.load(bytes_at + block + 4 + tl.where(first, part + 4, part), inside, 0).to(tl.int32)
    high = tl.load(bytes_at + block + 12 + part % 4, inside, 0).to(tl.int32)
    factor = tl.where(first, low & 63, (high & 15) | (low >> 6 << 4)).to(tl.float32)
    minimum = tl.where(first, middle & 63, (high >> 4) | (middle >> 6 << 4)).to(tl.float32)
    scale = tl.load(halves_at + block // 2, inside, 0.0).to(tl.float32) * factor
    return number.to(tl.float32) * scale - tl.load(halves_at + block // 2 + 1, inside, 0.0).to(tl.float32) * minimum


@triton.jit
def _six_bits(bytes_at, halves_at, block, i, inside):
    """Value i of a Q6_K block of 256 that begins at byte `block`."""
    half, part, k = i // 128, i % 128 // 32, i % 32
    low = tl.load(bytes_at + block + half * 64 + part % 2 * 32 + k, inside, 0).to(tl.int32) >> (part // 2 * 4)
    high = tl.load(bytes_at + block + 128 + half * 32 + k, inside, 0).to(tl.int32) >> (part * 2)
    number = ((low & 15) | ((high & 3) << 4)) - 32
    factor = tl.load(bytes_at + block + 192 + i // 16, inside, 0).to(tl.int8, bitcast=True).to(tl.float32)
    scale = tl.load(halves_at + block // 2 + 104, inside, 0.0).to(tl.float32) * factor
    return number.to(tl.float32) * scale


@triton.jit
def _decode(
    stored_at, halves_at, out_at, routed_at, rows, columns, pairs, less, row_size,
    together, out_expert, out_matrix, out_row, out_column,
    KIND: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCK_BYTES: tl.constexpr, PAIRED: tl.constexpr,
    HAS_LESS: tl.constexpr, PER_HIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(2).to(tl.int64)
    if PER_HIT > 0:  # noqa: SIM102
        if tl.load(routed_at + matrix // PER_HIT) == 0:
            return
    row, column, inside = block_of(BLOCK_ROWS, BLOCK_COLUMNS, rows, columns)
    begin = (matrix * rows + row) * row_size
    if PER_BLOCK == 1:
        value = tl.load(stored_at + begin + column, inside, 0.0).to(tl.float32)
    else:
        block, i = begin + column // PER_BLOCK * BLOCK_BYTES, column % PER_BLOCK
        if PER_BLOCK == 32:
            value = _small_block(stored_at, halves_at, block, i, inside, KIND)
        elif KIND == "Q6_K":
            value = _six_bits(stored_at, halves_at, block, i, inside)
        else:
            value = _large_block(stored_at, halves_at, block, i, inside, KIND)
    if HAS_LESS:
        value -= less
    if PAIRED:
        in_head = row % (2 * pairs)
        row = row - in_head + in_head % 2 * pairs + in_head // 2
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, tl.float32)


def ggml(scheme: Ggml, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    """`out`: a vector is a matrix with one column."""
    stored = operands["blocks"]
    per_block, block_bytes = BLOCKS.get(scheme.kind, (1, 0))
    _decode[grid(out)](
        stored,
        stored.view(torch.float16) if per_block > 1 else stored,
        out.tensor,
        no_tensor(out.routed, stored),
        out.rows,
        out.columns,
        out.rows // scheme.paired_heads // 2 if scheme.paired_heads else 1,
        scheme.less,
        member_size(stored, out.count) // out.rows,
        *out.place,
        KIND=scheme.kind,
        PER_BLOCK=per_block,
        BLOCK_BYTES=block_bytes,
        PAIRED=scheme.paired_heads > 0,
        HAS_LESS=scheme.less != 0,
        PER_HIT=out.per_hit,
        **BLOCK,
    )
