"""Dequantizes ggml's K kinds: blocks of 256 values in parts, whose scales are quantized as well."""

from __future__ import annotations

import torch
from torch import Tensor

from loaders.dequantize.ggml.unpack import SUB, add_bits, copied, crumbs, floats, nibbles, words_of

THIRD_BITS, FIFTH_BITS, SIXTH_BITS = 0x0404040404040404, 0x1010101010101010, 0x3030303030303030  # of 8 bytes


def q2_k(stored: Tensor) -> Tensor:
    """Dequantize Q2_K: 16 parts of 16 values, each with 4 bits of a scale and 4 of a minimum in one byte."""
    factor, minimum = floats(stored[:, 80:]).split(1, dim=1)
    scale = factor * (stored[:, :16] & 15)
    least = minimum * (stored[:, :16] >> 4)
    values = crumbs(stored[:, 16:80]).to(torch.float32).view(-1, 16, SUB // 2)
    return values.mul_(scale[..., None]).sub_(least[..., None])


def q3_k(stored: Tensor) -> Tensor:
    """Dequantize Q3_K: bit i of byte k of the third bits belongs to value k of part i of 32; 0 there means 4 less.

    The scales of its 16 parts of 16 values: 8 bytes of their low 4 bits, 4 bytes of the 2 high ones.
    """
    codes = crumbs(stored[:, 32:96])
    add_bits(codes, stored[:, :32], range(2, -6, -1), THIRD_BITS)
    values = codes.to(torch.float32).view(-1, 16, SUB // 2)
    values -= 4
    first, second, high = words_of(stored[:, 96:108]).unbind(1)
    low = torch.stack([first, second, first >> 4, second >> 4], dim=1) & 0x0F0F0F0F
    high = torch.stack([high << 4, high << 2, high, high >> 2], dim=1) & 0x30303030
    scale = (low | high).view(torch.uint8).to(torch.float32)
    scale -= 32
    scale *= floats(stored[:, 108:])
    return values.mul_(scale[..., None])


def q4_k(stored: Tensor) -> Tensor:
    scale, minimum = _scales_and_minima(stored)
    return nibbles(stored[:, 16:]).to(torch.float32).view(-1, 8, SUB).mul_(scale).sub_(minimum)


def q5_k(stored: Tensor) -> Tensor:
    """Dequantize Q5_K: bit i of byte k of the fifth bits belongs to value k of part i."""
    scale, minimum = _scales_and_minima(stored)
    codes = nibbles(stored[:, 48:])
    add_bits(codes, stored[:, 16:48], range(4, -4, -1), FIFTH_BITS)
    return codes.to(torch.float32).view(-1, 8, SUB).mul_(scale).sub_(minimum)


def q6_k(stored: Tensor) -> Tensor:
    """Dequantize Q6_K. A half is 4 parts of 32 values: 64 bytes of their low 4 bits, 32 bytes of the 2 high ones."""
    scale = stored[:, 192:208].view(torch.int8).to(torch.float32).mul_(floats(stored[:, 208:]))
    codes = nibbles(stored[:, :128], 64)
    add_bits(codes, stored[:, 128:192], (4, 2, 0, -2), SIXTH_BITS)
    values = codes.to(torch.float32).view(-1, 16, SUB // 2)
    values -= 32
    return values.mul_(scale[..., None])


def _scales_and_minima(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 parts in Q4_K and Q5_K, float32 [n, 8, 1] each: 6-bit numbers in 12 bytes."""
    factor = floats(stored[:, :4])
    low, middle, high = copied(copied(stored[:, 4:16]).view(torch.int32).T)
    late_scales = (high & 0x0F0F0F0F) | ((low >> 2) & 0x30303030)
    late_minima = ((high >> 4) & 0x0F0F0F0F) | ((middle >> 2) & 0x30303030)
    found = torch.stack([low & 0x3F3F3F3F, late_scales, middle & 0x3F3F3F3F, late_minima], dim=1)
    scaled = found.view(torch.uint8).to(torch.float32).view(-1, 2, 8).mul_(factor[..., None])
    return scaled[:, 0, :, None], scaled[:, 1, :, None]
