"""Dequantizes ggml's blocks in plain torch: whole blocks to float32, bit for bit as `gguf.quants.dequantize`.

Products of a scale and a small integer are exact in float32, so the order of operations only matters where a minimum is
added. The layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from loaders.dequantize.side_by_side import block_values, for_each
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS

LOW_NIBBLES, FIFTH_BITS, SIXTH_BITS = 0x0F0F0F0F0F0F0F0F, 0x1010101010101010, 0x3030303030303030  # of 8 bytes
SUB = 32  # values of a simple block, and of a large block's part, which has its own scale


def ggml(scheme: Ggml, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """`out` has any shape; its last dimension is a row, and a vector is one row."""

    def decode_part(part: tuple[Tensor, Tensor]) -> None:
        source, target = part
        if scheme.kind in BLOCKS:
            values = VALUES[scheme.kind](source.reshape(-1, BLOCKS[scheme.kind][1]))
        else:
            values = source.to(torch.float32)
        if scheme.less:
            values = values - scheme.less
        target.copy_(values.view(target.shape))

    for_each(decode_part, _parts(operands["blocks"], out, scheme.paired_heads), out)


def _parts(stored: Tensor, out: Tensor, paired_heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `stored` that are dequantized at once, and the views their values go to, in the same order.

    Paired rows of a head are [pairs, 2, row] on disk, [2, pairs, row] in the model.
    """
    most = block_values(out)
    if not paired_heads:
        source, target = stored.reshape(-1, stored.shape[-1]), out.view(-1, out.shape[-1])
        step = max(most // target.shape[-1], 1)
        yield from zip(source.split(step), target.split(step))
        return
    pairs = len(out) // paired_heads // 2
    source, target = stored.view(paired_heads, pairs, 2, -1), out.view(paired_heads, 2, pairs, -1).transpose(1, 2)
    heads = max(most // (2 * pairs * target.shape[-1]), 1)
    step = max(most // (2 * target.shape[-1]), 1) if heads == 1 else pairs
    for some, their in zip(source.split(heads), target.split(heads)):
        yield from zip(some.split(step, dim=1), their.split(step, dim=1))


def _floats(stored: Tensor) -> Tensor:
    """Bytes [n, 2 k] of float16 numbers as float32 [n, k]."""
    return _copied(stored).view(torch.float16).to(torch.float32)


def _copied(stored: Tensor) -> Tensor:
    """Contiguous and aligned, so viewable as wider integers: 8 bytes then take the time of one."""
    return stored.clone(memory_format=torch.contiguous_format)


def _nibbles(stored: Tensor, size: int = SUB) -> Tensor:
    """uint8 [n, parts × size] → uint8 [n, parts × 2 × size]: the low halves of a part's bytes, then the high ones."""
    low = _copied(stored).view(torch.int64).view(-1, size // 8)
    high = low >> 4
    low &= LOW_NIBBLES
    high &= LOW_NIBBLES
    return torch.stack([low, high], dim=1).view(torch.uint8).view(len(stored), -1)


def _add_bits(codes: Tensor, stored: Tensor, shifts: Iterable[int], mask: int) -> None:
    """OR the bits in `mask` of bytes [n, k × 32], shifted left per part, into uint8 codes [n, k × parts × 32]."""
    words = _copied(stored).view(torch.int64).view(-1, SUB // 8)
    bits = torch.stack([words << shift if shift > 0 else words >> -shift for shift in shifts], dim=1)
    bits &= mask
    codes.view(torch.int64).view(-1).bitwise_or_(bits.view(-1))


def _fifth_bits_of_bytes(device: torch.device) -> Tensor:
    """For every byte value its 8 bits, each as the fifth bit of a byte: int64 [256].

    Made on the device: a copy to it would wait, and could not be captured in a graph.
    """
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return ((bits & 1) << 4).to(torch.uint8).view(torch.int64).flatten()


FIFTH_BITS_OF_BYTES = _fifth_bits_of_bytes(torch.device("cpu"))


def _add_fifth_bits(codes: Tensor, stored: Tensor) -> None:
    """OR bit i of the 32 in bytes [n, 4] into code i of uint8 [n, 32]."""
    table = FIFTH_BITS_OF_BYTES if stored.device.type == "cpu" else _fifth_bits_of_bytes(stored.device)
    spread = table.index_select(0, stored.reshape(-1).to(torch.int32))
    codes.view(torch.int64).view(-1).bitwise_or_(spread)


def q4_0(stored: Tensor) -> Tensor:
    values = _nibbles(stored[:, 2:], 16).to(torch.float32)
    values -= 8
    return values.mul_(_floats(stored[:, :2]))


def q4_1(stored: Tensor) -> Tensor:
    scale = _floats(stored[:, :4])
    return _nibbles(stored[:, 4:], 16).to(torch.float32).mul_(scale[:, :1]).add_(scale[:, 1:])


def q5_0(stored: Tensor) -> Tensor:
    codes = _nibbles(stored[:, 6:], 16)
    _add_fifth_bits(codes, stored[:, 2:6])
    values = codes.to(torch.float32)
    values -= 16
    return values.mul_(_floats(stored[:, :2]))


def q5_1(stored: Tensor) -> Tensor:
    scale, codes = _floats(stored[:, :4]), _nibbles(stored[:, 8:], 16)
    _add_fifth_bits(codes, stored[:, 4:8])
    return codes.to(torch.float32).mul_(scale[:, :1]).add_(scale[:, 1:])


def q8_0(stored: Tensor) -> Tensor:
    return stored[:, 2:].view(torch.int8).to(torch.float32).mul_(_floats(stored[:, :2]))


def q4_k(stored: Tensor) -> Tensor:
    scale, minimum = _scales_and_minima(stored)
    return _nibbles(stored[:, 16:]).to(torch.float32).view(-1, 8, SUB).mul_(scale).sub_(minimum)


def q5_k(stored: Tensor) -> Tensor:
    """Dequantize Q5_K: bit i of byte k of the fifth bits belongs to value k of part i."""
    scale, minimum = _scales_and_minima(stored)
    codes = _nibbles(stored[:, 48:])
    _add_bits(codes, stored[:, 16:48], range(4, -4, -1), FIFTH_BITS)
    return codes.to(torch.float32).view(-1, 8, SUB).mul_(scale).sub_(minimum)


def q6_k(stored: Tensor) -> Tensor:
    """Dequantize Q6_K. A half is 4 parts of 32 values: 64 bytes of their low 4 bits, 32 bytes of the 2 high ones."""
    scale = stored[:, 192:208].view(torch.int8).to(torch.float32).mul_(_floats(stored[:, 208:]))
    codes = _nibbles(stored[:, :128], 64)
    _add_bits(codes, stored[:, 128:192], (4, 2, 0, -2), SIXTH_BITS)
    values = codes.to(torch.float32).view(-1, 16, SUB // 2)
    values -= 32
    return values.mul_(scale[..., None])


def _scales_and_minima(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 parts in Q4_K and Q5_K, float32 [n, 8, 1] each: 6-bit numbers in 12 bytes."""
    factor = _floats(stored[:, :4])
    low, middle, high = _copied(_copied(stored[:, 4:16]).view(torch.int32).T)
    late_scales = (high & 0x0F0F0F0F) | ((low >> 2) & 0x30303030)
    late_minima = ((high >> 4) & 0x0F0F0F0F) | ((middle >> 2) & 0x30303030)
    found = torch.stack([low & 0x3F3F3F3F, late_scales, middle & 0x3F3F3F3F, late_minima], dim=1)
    scaled = found.view(torch.uint8).to(torch.float32).view(-1, 2, 8).mul_(factor[..., None])
    return scaled[:, 0, :, None], scaled[:, 1, :, None]


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
