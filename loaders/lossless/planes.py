"""Numbers of a few bits as planes, each of 1, 2, 4 or 8 bits a number, with the first number in the lowest bits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from loaders.lossless.bins import planes


def into_planes(numbers: Tensor, bits: int) -> Tensor:
    """uint8 [n] of numbers below 2^bits, n a multiple of 8, bits up to 8 → uint8 [bits * n / 8].

    One plane after another, the first of them of the lowest bits.
    """
    parts, done = [], 0
    for width in planes(bits):
        part = (numbers >> done) & (1 << width) - 1
        fields = part.view(-1, 8 // width)
        packed = fields[:, 0].clone()
        for place in range(1, 8 // width):
            packed |= fields[:, place] << width * place
        parts.append(packed)
        done += width
    return torch.cat(parts)


def from_planes(stored: Tensor, bits: int, count: int, begin: int, end: int) -> Tensor:
    """Numbers `begin` to `end` (multiples of 8) of `count`, uint8 [end - begin]."""
    numbers, done = None, 0
    for width in planes(bits):
        first, per_byte = done * count // 8, 8 // width
        part = stored[first + begin // per_byte : first + end // per_byte]
        fields = part[:, None] >> _shifts(width, stored.device) if width < 8 else part
        if width < 8:
            fields &= (1 << width) - 1
        fields = fields.view(-1)
        numbers = fields if numbers is None else numbers | fields << done
        done += width
    assert numbers is not None
    return numbers


@cache
def _shifts(width: int, device: torch.device) -> Tensor:
    """Of the numbers in a byte, uint8 [8 / width]. Uploaded once: an upload would wait for the device."""
    return torch.arange(0, 8, width, dtype=torch.uint8, device=device)
