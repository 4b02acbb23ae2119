"""Dequantizes ggml's blocks in plain torch: whole blocks to float32, bit for bit as `gguf.quants.dequantize`.

Products of a scale and a small integer are exact in float32, so the order of operations only matters where a minimum is
added. The layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from loaders.dequantize.ggml import i_quants, k_quants, simple
from loaders.dequantize.side_by_side import block_values, for_each
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS

VALUES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": simple.q4_0,
    "Q4_1": simple.q4_1,
    "Q5_0": simple.q5_0,
    "Q5_1": simple.q5_1,
    "Q8_0": simple.q8_0,
    "Q2_K": k_quants.q2_k,
    "Q3_K": k_quants.q3_k,
    "Q4_K": k_quants.q4_k,
    "Q5_K": k_quants.q5_k,
    "Q6_K": k_quants.q6_k,
    "IQ1_S": i_quants.iq1_s,
    "IQ1_M": i_quants.iq1_m,
    "IQ2_XXS": i_quants.iq2_xxs,
    "IQ2_XS": i_quants.iq2_xs,
    "IQ2_S": i_quants.iq2_s,
    "IQ3_XXS": i_quants.iq3_xxs,
    "IQ3_S": i_quants.iq3_s,
    "IQ4_NL": i_quants.iq4_nl,
    "IQ4_XS": i_quants.iq4_xs,
    "TQ1_0": simple.tq1_0,
    "TQ2_0": simple.tq2_0,
    "MXFP4": i_quants.mxfp4,
}


def ggml(scheme: Ggml, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """`out` has any shape and strides; its last dimension is a row, and a vector is one row."""

    def decode_part(part: tuple[Tensor, Tensor]) -> None:
        source, target = part
        if scheme.kind in BLOCKS:
            values = VALUES[scheme.kind](source.reshape(-1, BLOCKS[scheme.kind][1]))
        else:
            values = source.to(torch.float32)
        if scheme.less:
            values = values - scheme.less
        if scheme.negated_log:
            values = values.neg().log_()
        if scheme.tiles:
            target = target.unflatten(-1, (scheme.groups, scheme.tiles, -1)).transpose(-3, -2)
        target.copy_(values.view(target.shape))

    for_each(decode_part, _parts(operands["blocks"], out, scheme.paired_heads), out)


def _parts(stored: Tensor, out: Tensor, paired_heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `stored` that are dequantized at once, and the views their values go to, in the same order."""
    most = block_values(out)
    if paired_heads:
        yield from _paired_parts(stored, out, paired_heads, most)
        return
    if out.is_contiguous() or out.dim() < 3:
        out = out.view(-1, out.shape[-1])
    elif out.numel() <= most:
        yield stored, out
        return
    for source, target in _matrices(stored, out):
        step = max(most // target.shape[-1], 1)
        yield from zip(source.split(step), target.split(step))


def _matrices(stored: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The matrices of a stack of any number of dimensions."""
    if out.dim() == 2:
        yield stored.reshape(len(out), -1), out
        return
    for source, target in zip(stored.reshape(len(out), -1), out):
        yield from _matrices(source, target)


def _paired_parts(stored: Tensor, out: Tensor, heads: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Paired rows of a head are [pairs, 2, row] on disk, [2, pairs, row] in the model."""
    pairs = len(out) // heads // 2
    source, target = stored.view(heads, pairs, 2, -1), out.view(heads, 2, pairs, -1).transpose(1, 2)
    together = max(most // (2 * pairs * target.shape[-1]), 1)
    step = max(most // (2 * target.shape[-1]), 1) if together == 1 else pairs
    for some, their in zip(source.split(together), target.split(together)):
        yield from zip(some.split(step, dim=1), their.split(step, dim=1))
