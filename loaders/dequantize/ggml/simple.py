"""Dequantizes ggml's blocks with one scale: bytes [n, of a block] → float32 [n, values of a block].

32 values in 4 to 8 bits, or 256 ternary ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loaders.dequantize.ggml.unpack import add_fifth_bits, crumbs, floats, nibbles


def q4_0(stored: Tensor) -> Tensor:
    values = nibbles(stored[:, 2:], 16).to(torch.float32)
    values -= 8
    return values.mul_(floats(stored[:, :2]))


def q4_1(stored: Tensor) -> Tensor:
    scale = floats(stored[:, :4])
    return nibbles(stored[:, 4:], 16).to(torch.float32).mul_(scale[:, :1]).add_(scale[:, 1:])


def q5_0(stored: Tensor) -> Tensor:
    codes = nibbles(stored[:, 6:], 16)
    add_fifth_bits(codes, stored[:, 2:6])
    values = codes.to(torch.float32)
    values -= 16
    return values.mul_(floats(stored[:, :2]))


def q5_1(stored: Tensor) -> Tensor:
    scale, codes = floats(stored[:, :4]), nibbles(stored[:, 8:], 16)
    add_fifth_bits(codes, stored[:, 4:8])
    return codes.to(torch.float32).mul_(scale[:, :1]).add_(scale[:, 1:])


def q8_0(stored: Tensor) -> Tensor:
    return stored[:, 2:].view(torch.int8).to(torch.float32).mul_(floats(stored[:, :2]))


def tq1_0(stored: Tensor) -> Tensor:
    """Dequantize TQ1_0: bytes of 5 base-3 digits, as fractions of 256; groups of 32 and 16 bytes, then 4 bytes of 4.

    A digit is read off the top: the byte times a power of 3, modulo 256, is a fraction whose first digit it is.
    """
    parts = []
    for begin, end, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        digits = torch.stack([stored[:, begin:end] * 3**place for place in range(count)], dim=1)
        parts.append(digits.flatten(1))
    values = ((torch.cat(parts, dim=1).to(torch.int16) * 3) >> 8).to(torch.float32)
    values -= 1
    return values.mul_(floats(stored[:, 52:]))


def tq2_0(stored: Tensor) -> Tensor:
    values = crumbs(stored[:, :64]).to(torch.float32)
    values -= 1
    return values.mul_(floats(stored[:, 64:]))
