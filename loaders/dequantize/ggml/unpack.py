"""Takes ggml's blocks apart in plain torch: scales, and small integers by shifts and masks over whole words."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LOW_NIBBLES, LOW_CRUMBS = 0x0F0F0F0F0F0F0F0F, 0x0303030303030303  # of 8 bytes
SUB = 32  # values of a simple block, and of a large block's part


def floats(stored: Tensor) -> Tensor:
    """Bytes [n, 2 k] of float16 numbers as float32 [n, k]."""
    return copied(stored).view(torch.float16).to(torch.float32)


def copied(stored: Tensor) -> Tensor:
    """Contiguous and aligned, so viewable as wider integers: 8 bytes then take the time of one."""
    return stored.clone(memory_format=torch.contiguous_format)


def nibbles(stored: Tensor, size: int = SUB) -> Tensor:
    """uint8 [n, parts × size] → uint8 [n, parts × 2 × size]: the low halves of a part's bytes, then the high ones."""
    low = copied(stored).view(torch.int64).view(-1, size // 8)
    high = low >> 4
    low &= LOW_NIBBLES
    high &= LOW_NIBBLES
    return torch.stack([low, high], dim=1).view(torch.uint8).view(len(stored), -1)


def add_bits(codes: Tensor, stored: Tensor, shifts: Iterable[int], mask: int) -> None:
    """OR the bits in `mask` of bytes [n, k × 32], shifted left per part, into uint8 codes [n, k × parts × 32]."""
    words = copied(stored).view(torch.int64).view(-1, SUB // 8)
    bits = torch.stack([words << shift if shift > 0 else words >> -shift for shift in shifts], dim=1)
    bits &= mask
    codes.view(torch.int64).view(-1).bitwise_or_(bits.view(-1))


def crumbs(stored: Tensor) -> Tensor:
    """uint8 [n, parts × 32] → uint8 [n, parts × 128]: the lowest 2 bits of a part's bytes, then the next higher."""
    words = copied(stored).view(torch.int64).view(-1, SUB // 8)
    codes = torch.stack([words >> shift for shift in (0, 2, 4, 6)], dim=1)
    codes &= LOW_CRUMBS
    return codes.view(torch.uint8).view(len(stored), -1)


def fields(words: Tensor, shifts: Iterable[int], mask: int) -> Tensor:
    """The numbers in `mask` of int32 words [n, k], shifted right: int32 [n, k × shifts], those of a word together."""
    found = torch.stack([words >> shift for shift in shifts], dim=2)
    found &= mask
    return found.flatten(1)


def words_of(stored: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
    """Bytes [n, w × k] as integers [n, k] of `dtype`, in int32; 16-bit ones are unsigned."""
    words = copied(stored).view(dtype)
    return words if dtype == torch.int32 else words.to(torch.int32) & 0xFFFF


def _fifth_bits_of_bytes(device: torch.device) -> Tensor:
    """For every byte value its 8 bits, each as the fifth bit of a byte: int64 [256].

    Made on the device: a copy to it would wait, and could not be captured in a graph.
    """
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return ((bits & 1) << 4).to(torch.uint8).view(torch.int64).flatten()


FIFTH_BITS_OF_BYTES = _fifth_bits_of_bytes(torch.device("cpu"))


def add_fifth_bits(codes: Tensor, stored: Tensor) -> None:
    """OR bit i of the 32 in bytes [n, 4] into code i of uint8 [n, 32]."""
    table = FIFTH_BITS_OF_BYTES if stored.device.type == "cpu" else _fifth_bits_of_bytes(stored.device)
    spread = table.index_select(0, stored.reshape(-1).to(torch.int32))
    codes.view(torch.int64).view(-1).bitwise_or_(spread)
