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

from loaders.dequantize.ggml import plain
from loaders.dequantize.ggml.codebooks import has_codebook, tables_of
from loaders.dequantize.ggml.pieces import placed
from loaders.dequantize.ggml.triton_blocks import large_block, six_bits, small_block, ternary, three_bits, two_bits
from loaders.dequantize.ggml.triton_codebooks import four_bits, one_bit_groups, three_bit_groups, two_bit_groups
from loaders.dequantize.launch import BLOCK, MatrixStack, at, block_of, grid, member_size, no_tensor, store
from loaders.formats.schemes import Ggml, Pieces
from loaders.gguf.types import BLOCKS


@triton.jit
def _block_value(stored_at, halves_at, book_at, block, i, inside, KIND: tl.constexpr):
    """Value i of the block that begins at byte `block`."""
    if KIND == "Q4_K" or KIND == "Q5_K":
        value = large_block(stored_at, halves_at, block, i, inside, KIND)
    elif KIND == "Q6_K":
        value = six_bits(stored_at, halves_at, block, i, inside)
    elif KIND == "Q3_K":
        value = three_bits(stored_at, halves_at, block, i, inside)
    elif KIND == "Q2_K":
        value = two_bits(stored_at, halves_at, block, i, inside)
    elif KIND == "TQ1_0" or KIND == "TQ2_0":
        value = ternary(stored_at, halves_at, block, i, inside, KIND)
    elif KIND == "IQ4_NL" or KIND == "IQ4_XS" or KIND == "MXFP4":
        value = four_bits(stored_at, halves_at, book_at, block, i, inside, KIND)
    elif KIND == "IQ3_XXS" or KIND == "IQ3_S":
        value = three_bit_groups(stored_at, halves_at, book_at, block, i, inside, KIND)
    elif KIND == "IQ2_XXS" or KIND == "IQ2_XS" or KIND == "IQ2_S":
        value = two_bit_groups(stored_at, halves_at, book_at, block, i, inside, KIND)
    elif KIND == "IQ1_S" or KIND == "IQ1_M":
        value = one_bit_groups(stored_at, halves_at, book_at, block, i, inside, KIND)
    else:
        value = small_block(stored_at, halves_at, block, i, inside, KIND)
    return value


@triton.jit
def _decode(
    stored_at, halves_at, book_at, out_at, routed_at, rows, columns, pairs, less, row_size, tiles, groups,
    together, out_expert, out_matrix, out_row, out_column,
    KIND: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCK_BYTES: tl.constexpr, PAIRED: tl.constexpr,
    HAS_LESS: tl.constexpr, TILED: tl.constexpr, PER_HIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
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
        value = _block_value(stored_at, halves_at, book_at, block, i, inside, KIND)
    if HAS_LESS:
        value -= less
    if PAIRED:
        in_head = row % (2 * pairs)
        row = row - in_head + in_head % 2 * pairs + in_head // 2
    if TILED:
        width = columns // (tiles * groups)
        column = (column // width % groups * tiles + column // (width * groups)) * width + column % width
    place = at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column)
    store(place, value, inside, tl.float32)


def ggml(scheme: Ggml, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    """`out`: a vector is a matrix with one column."""
    if scheme.negated_log:  # of short vectors; the logarithm of another library would differ in its last bit
        plain.ggml(scheme, operands, out.tensor)
        return
    stored = operands["blocks"]
    per_block, block_bytes = BLOCKS.get(scheme.kind, (1, 0))
    _decode[grid(out)](
        stored,
        stored if block_bytes % 2 or per_block == 1 else stored.view(torch.float16),
        tables_of(scheme.kind, stored.device).book if has_codebook(scheme.kind) else stored,
        out.tensor,
        no_tensor(out.routed, stored),
        out.rows,
        out.columns,
        out.rows // scheme.paired_heads // 2 if scheme.paired_heads else 1,
        scheme.less,
        member_size(stored, out.count) // out.rows,
        max(scheme.tiles, 1),
        max(scheme.groups, 1),
        *out.place,
        KIND=scheme.kind,
        PER_BLOCK=per_block,
        BLOCK_BYTES=block_bytes,
        PAIRED=scheme.paired_heads > 0,
        HAS_LESS=scheme.less != 0,
        TILED=scheme.tiles > 0,
        PER_HIT=out.per_hit,
        **BLOCK,
    )


def pieces(scheme: Pieces, operands: Mapping[str, Tensor], out: MatrixStack) -> None:
    """One launch for each piece."""
    for piece in scheme.pieces:
        rows = placed(scheme, piece.placement, out.tensor)
        ggml(piece.scheme, {"blocks": operands[piece.role]}, MatrixStack.of(rows, out.routed))
