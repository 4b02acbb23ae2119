"""Dequantizes in plain torch, on any device: the reference for the kernels, and the CPU implementation.

A matrix is processed in blocks of rows. On a CPU they stay in a core's cache, and each core needs a few MB besides the
output; on a GPU they are as large as most matrices, which keeps the number of launches low.
Values are computed in float32, where products of a small integer and a 16-bit scale are exact, and rounded once to the
scale's dtype: bit for bit as in the formats' own libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from loaders.dequantize.ggml.pieces import pieces
from loaders.dequantize.ggml.plain import ggml
from loaders.dequantize.lossless.plain import lossless
from loaders.dequantize.side_by_side import block_values, for_each
from loaders.dequantize.values import (
    FP4_AS_HALF_FACTOR,
    awq_nibbles,
    fp4_values,
    fp8_values,
    nibbles,
    pair_values,
    scale_values,
)
from loaders.formats.schemes import Awq, Codebook, Fp4, Ggml, Gptq, Lossless, Pieces, Scaled, Scheme, Words

ONES = {4: 0x11111111, 8: 0x01010101}  # a one in each field of a word

Operands = Mapping[str, Tensor]


def decode(scheme: Scheme, operands: Operands, out: Tensor) -> None:
    """Dequantize one weight into `out`, in the shape that the scheme describes, any float dtype, any strides."""
    DECODERS[type(scheme)](scheme, operands, out)


def blocks(out: Tensor, group: int = 1) -> Iterator[slice]:
    """Blocks of a matrix's rows: whole groups of rows, or parts of one group in multiples of 8."""
    rows, columns = out.shape
    most = max(block_values(out) // columns, 8)
    step = most // group * group or next(part for part in range(most // 8 * 8, 0, -8) if group % part == 0)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _by_group(values: Tensor, rows: slice, size: int) -> tuple[Tensor, slice]:
    """A block split by groups of rows, [groups, rows, columns], and the groups' indices."""
    return values.unflatten(0, (-1, min(size, len(values)))), slice(rows.start // size, -(-rows.stop // size))


def awq(scheme: Awq, operands: Operands, out: Tensor) -> None:
    """out [N, K]."""
    words, scales = operands["qweight"], operands["scales"]
    zeros, size, out = awq_nibbles(operands["qzeros"]), scheme.group_size, out.mT

    def decode_rows(rows: slice) -> None:
        values = awq_nibbles(words[rows]).to(torch.float32)
        grouped, among = _by_group(values, rows, size)
        grouped -= zeros[among, None].to(torch.float32)
        grouped *= scales[among, None].to(torch.float32)
        store(values, scales.dtype, out[rows])

    for_each(decode_rows, blocks(out, size), out)


def gptq(scheme: Gptq, operands: Operands, out: Tensor) -> None:
    """out [N, K]."""
    bits, size, out = scheme.bits, scheme.group_size, out.mT
    words, scales, per_word = operands["qweight"], operands["scales"], 32 // bits
    zeros = operands["qzeros"]
    if scheme.zeros_less_one:
        zeros = zeros + ONES[bits]  # over whole words, since a zero point of 0 has borrowed from its neighbour
    zeros = _fields(zeros, bits).float()

    def decode_rows(rows: slice) -> None:
        packed = words[rows.start // per_word : rows.stop // per_word]
        values = torch.empty(rows.stop - rows.start, out.shape[1], device=out.device)
        by_word = values.unflatten(0, (-1, per_word))
        for field in range(per_word):
            by_word[:, field] = (packed >> bits * field) & (1 << bits) - 1
        if scheme.ordered:
            grouped, among = _by_group(values, rows, size)
            grouped -= zeros[among, None]
            grouped *= scales[among, None].to(torch.float32)
        else:
            group = operands["g_idx"][rows]
            values -= zeros[group]
            values *= scales[group].to(torch.float32)
        store(values, scales.dtype, out[rows])

    for_each(decode_rows, blocks(out, size if scheme.ordered else per_word), out)


def words(scheme: Words, operands: Operands, out: Tensor) -> None:
    """out [N, K]."""
    packed, scale, bits = operands["weight_packed"], operands["weight_scale"], scheme.bits
    scale = scale.expand(out.shape[0], -1) if scale.dim() == 2 else scale.reshape(1, 1).expand(out.shape[0], 1)
    zeros = operands.get("weight_zero_point")
    if zeros is not None:
        zeros = _fields(zeros.mT.contiguous(), bits).mT[: out.shape[0]]

    def decode_rows(rows: slice) -> None:
        values = _fields(packed[rows], bits).to(torch.float32)
        if zeros is None:
            values -= 1 << (bits - 1)
        if scheme.ordered:
            grouped = values.unflatten(1, (-1, scheme.group_size))
            if zeros is not None:
                grouped -= zeros[rows, :, None].to(torch.float32)
            grouped *= scale[rows, :, None].to(torch.float32)
        else:
            group = operands["weight_g_idx"]
            if zeros is not None:
                values -= zeros[rows][:, group].to(torch.float32)
            values *= scale[rows][:, group].to(torch.float32)
        store(values, scale.dtype, out[rows])

    for_each(decode_rows, blocks(out), out)


def scaled(scheme: Scaled, operands: Operands, out: Tensor) -> None:
    """out [N, K]."""
    weight, scale, zeros = operands["weight"], operands["weight_scale"], operands.get("weight_zero_point")
    height, width = min(scheme.rows, out.shape[0]), scheme.columns
    shape = (-(-out.shape[0] // height), -(-out.shape[1] // width))
    scale, dtype = scale_values(scale.reshape(shape))
    kept = torch.float32 if scheme.in_float32 else dtype

    def decode_rows(rows: slice) -> None:
        lines = torch.arange(rows.start, rows.stop, device=out.device) // height
        values, factor = _floats(weight[rows])
        scales = scale[lines]
        if factor != 1:
            scales = scales * factor
        for part, among in _by_column(values, width):
            if zeros is not None:
                part -= zeros.reshape(shape)[lines, among, None].to(torch.float32)
            part *= scales[:, among, None]
        if scheme.factor != 1:
            values *= scheme.factor
        store(values, kept, out[rows])

    for_each(decode_rows, blocks(out), out)


def fp4(scheme: Fp4, operands: Operands, out: Tensor) -> None:
    """out [N, K]; or of fused experts [E, N, K], by column or input-major [E, K, N]."""
    stored, scales = operands["weight"], operands["weight_scale"]
    if scheme.by_column:
        stored, scales, out = stored.mT, scales.mT, out.mT
    if scheme.input_major:
        stored, out = stored.flatten(2), out.mT
    if out.dim() == 2:
        stored, scales, out = stored[None], scales[None], out[None]
    overall = operands["global_scale"].reshape(-1, 1, 1) if "global_scale" in operands else None
    kept = torch.float32 if scheme.in_float32 else torch.bfloat16

    def decode_rows(part: tuple[slice, slice]) -> None:
        values = fp4_values(nibbles(stored[part].contiguous())).to(torch.float32)
        values *= FP4_AS_HALF_FACTOR
        scale, _ = scale_values(scales[part].contiguous())
        if overall is not None:
            among = overall[part[0]] if len(overall) > 1 else overall
            scale = scale / among if scheme.divides else scale * among
        values.unflatten(2, (-1, scheme.group_size)).mul_(scale[..., None])
        store(values, kept, out[part])

    together = max(block_values(out) // out[0].numel(), 1)
    experts = (slice(begin, begin + together) for begin in range(0, len(out), together))
    for_each(decode_rows, ((some, rows) for some in experts for rows in blocks(out[0])), out)


def codebook(scheme: Codebook, operands: Operands, out: Tensor) -> None:
    """out [N, K]."""
    table, absmax = operands["weight.quant_map"], codebook_scales(scheme, operands)
    stored, size = operands["weight"].view(-1), scheme.block
    out = out.view(-1, size)

    def decode_blocks(part: slice) -> None:
        pairs = stored[part.start * size // 2 : part.stop * size // 2]
        values = pair_values(pairs, table).view(-1, size)
        values *= absmax[part, None]
        store(values, getattr(torch, scheme.dtype), out[part])

    for_each(decode_blocks, blocks(out), out)


def codebook_scales(scheme: Codebook, operands: Operands) -> Tensor:
    """The scale of each block, float32 [..., blocks]."""
    absmax = operands["weight.absmax"]
    if not scheme.nested_block:
        return absmax
    codes, nested = operands["weight.nested_quant_map"], operands["weight.nested_absmax"]
    blocks_of_blocks = nested.repeat_interleave(scheme.nested_block, dim=-1)[..., : absmax.shape[-1]]
    return codes.gather(-1, absmax.to(torch.int64)) * blocks_of_blocks + scheme.nested_offset


DECODERS: Mapping[type, Callable[[Any, Operands, Tensor], None]] = {
    Awq: awq,
    Gptq: gptq,
    Words: words,
    Scaled: scaled,
    Fp4: fp4,
    Codebook: codebook,
    Ggml: ggml,
    Lossless: lossless,
    Pieces: pieces,
}


def store(values: Tensor, kept: torch.dtype, out: Tensor) -> None:
    """Round float32 values to the format's dtype, and cast them into `out`."""
    if kept not in (torch.float32, out.dtype):
        values = values.to(kept)
    out.copy_(values)


def _by_column(values: Tensor, width: int) -> Iterator[tuple[Tensor, slice]]:
    """Columns split by shared scales, [rows, groups, width], and the groups' indices: whole groups, then the rest."""
    whole = values.shape[1] // width
    yield values[:, : whole * width].unflatten(1, (whole, width)), slice(whole)
    if values.shape[1] % width:
        yield values[:, None, whole * width :], slice(whole, whole + 1)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """The unsigned numbers of int32 words, lowest bits first: [..., n] → uint8 [..., n * 32 / bits]."""
    return nibbles(packed) if bits == 4 else packed.view(torch.uint8)


def _floats(stored: Tensor) -> tuple[Tensor, float]:
    """Stored values as float32, and the factor to multiply them by."""
    values, factor = fp8_values(stored) if stored.dtype == torch.float8_e4m3fn else (stored, 1.0)
    return values.to(torch.float32), factor
