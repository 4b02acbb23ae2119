"""ggml's blocks in plain torch: bytes of whole blocks to float32, bit for bit what `gguf.quants.dequantize` gives.

Products of a scale and a small integer are exact in float32, so the order of operations only matters where a minimum is
added. The layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS

BLOCK_VALUES = 1 << 18  # decoded at once, to stay in a core's cache: 1 MB in float32
SUB = 32  # values of a simple block, and of a part of a large one that has a scale of its own


def ggml(scheme: Ggml, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """out of any shape; its last dimension is a row, of a vector it is all there is."""
    stored = operands["blocks"]
    for source, target in _parts(stored, out, scheme.paired_heads):
        if scheme.kind in BLOCKS:
            values = VALUES[scheme.kind](source.reshape(-1, BLOCKS[scheme.kind][1]))
        else:
            values = source.to(torch.float32)
        if scheme.less:
            values = values - scheme.less
        target.copy_(values.view(target.shape))


def _parts(stored: Tensor, out: Tensor, paired_heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `stored` that are worked on at once, and where their values go, in the same order.

    The rows of a head in pairs: [pairs, 2, row] on disk, [2, pairs, row] in the model.
    """
    if not paired_heads:
        source, target = stored.reshape(-1, stored.shape[-1]), out.view(-1, out.shape[-1])
        step = max(BLOCK_VALUES // target.shape[-1], 1)
        yield from zip(source.split(step), target.split(step))
        return
    pairs = len(out) // paired_heads // 2
    source, target = stored.view(paired_heads, pairs, 2, -1), out.view(paired_heads, 2, pairs, -1).transpose(1, 2)
    step = max(BLOCK_VALUES // (2 * target.shape[-1]), 1)
    for head in range(paired_heads):
        for begin in range(0, pairs, step):
            yield source[head, begin : begin + step], target[head, begin : begin + step]


def _floats(stored: Tensor) -> Tensor:
    """float16 numbers in bytes [n, 2 k] as float32 [n, k]."""
    return stored.contiguous().view(torch.float16).to(torch.float32)


def _nibbles(stored: Tensor) -> Tensor:
    """uint8 [n, parts × size] → uint8 [n, parts, 2, size]: the low halves of a part's bytes, then the high ones."""
    parts = stored.unflatten(1, (-1, min(stored.shape[1], SUB)))
    values = torch.empty(*parts.shape[:2], 2, parts.shape[2], dtype=torch.uint8, device=stored.device)
    torch.bitwise_and(parts, 0x0F, out=values[:, :, 0])
    torch.bitwise_right_shift(parts, 4, out=values[:, :, 1])
    return values


def _fifth_bits(stored: Tensor) -> Tensor:
    """uint8 [n, 4] → uint8 [n, 32]: bit i of the 32, as 16 or 0."""
    shifts = torch.arange(8, dtype=torch.uint8, device=stored.device)
    return ((stored[:, :, None] >> shifts) & 1).flatten(1) << 4


def q4_0(stored: Tensor) -> Tensor:
    values = _nibbles(stored[:, 2:]).flatten(1).to(torch.float32)
    values -= 8
    return values.mul_(_floats(stored[:, :2]))


def q4_1(stored: Tensor) -> Tensor:
    scale = _floats(stored[:, :4])
    values = _nibbles(stored[:, 4:]).flatten(1).to(torch.float32)
    return values.mul_(scale[:, :1]).add_(scale[:, 1:])


def q5_0(stored: Tensor) -> Tensor:
    codes = _nibbles(stored[:, 6:]).flatten(1)
    codes |= _fifth_bits(stored[:, 2:6])
    values = codes.to(torch.float32)
    values -= 16
    return values.mul_(_floats(stored[:, :2]))


def q5_1(stored: Tensor) -> Tensor:
    scale = _floats(stored[:, :4])
    codes = _nibbles(stored[:, 8:]).flatten(1)
    codes |= _fifth_bits(stored[:, 4:8])
    return codes.to(torch.float32).mul_(scale[:, :1]).add_(scale[:, 1:])


def q8_0(stored: Tensor) -> Tensor:
    return stored[:, 2:].view(torch.int8).to(torch.float32).mul_(_floats(stored[:, :2]))


def q4_k(stored: Tensor) -> Tensor:
    scale, minimum = _scales_and_minima(stored)
    values = _nibbles(stored[:, 16:]).to(torch.float32).view(-1, 8, SUB)
    return values.mul_(scale).sub_(minimum)


def q5_k(stored: Tensor) -> Tensor:
    """Bit i of byte k of the fifth bits belongs to value k of part i."""
    scale, minimum = _scales_and_minima(stored)
    codes = _nibbles(stored[:, 48:]).view(-1, 8, SUB)
    high = stored[:, 16:48]
    for part in range(8):
        codes[:, part] |= (high << 4 - part if part < 4 else high >> part - 4) & 0x10
    return codes.to(torch.float32).mul_(scale).sub_(minimum)


def q6_k(stored: Tensor) -> Tensor:
    """Two halves of 128 values, of 4 parts of 32 each: 64 bytes hold their low 4 bits, 32 bytes the 2 high ones."""
    scale = stored[:, 192:208].view(torch.int8).to(torch.float32) * _floats(stored[:, 208:])
    low, high = stored[:, :128].unflatten(1, (2, 2, SUB)), stored[:, 128:192].unflatten(1, (2, SUB))
    codes = torch.empty(len(stored), 2, 4, SUB, dtype=torch.uint8, device=stored.device)
    torch.bitwise_and(low, 0x0F, out=codes[:, :, :2])
    torch.bitwise_right_shift(low, 4, out=codes[:, :, 2:])
    for part in range(4):
        codes[:, :, part] |= (high << 4 - 2 * part if part < 2 else high >> 2 * part - 4) & 0x30
    values = codes.to(torch.float32).view(-1, 16, SUB // 2)
    values -= 32
    return values.mul_(scale[:, :, None])


def _scales_and_minima(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K, for each of 8 parts: float32 [n, 8, 1] both. 12 bytes hold 8 scales and 8 minima of 6 bits."""
    factor = _floats(stored[:, :4])
    low, middle, high = stored[:, 4:8], stored[:, 8:12], stored[:, 12:16]
    scale = torch.cat([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    minimum = torch.cat([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], dim=1)
    return (scale * factor[:, :1])[..., None], (minimum * factor[:, 1:])[..., None]


VALUES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
