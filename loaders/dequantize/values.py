"""Unpacks stored bytes to small integers and floats in plain torch, with shifts and masks over whole words.

On a CPU these take 0.1 to 0.4 ns a value, while casting int8 to float16 takes 0.6 and float8 to float32 3 (measured on
one core with AVX2). So bits are rearranged for a faster cast, and casts go through float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_BITS_OF_HALF = ~0x407F  # of int16: the sign, and the exponent and mantissa below one empty bit
FP8_AS_HALF_FACTOR = 256.0  # the factor by which float8_e4m3 is then too small: its exponent bias is 7, not 15
FP8_NAN = 0x7F
FP4_BITS_OF_HALF = ~0x71FF
FP4_AS_HALF_FACTOR = 2.0**14


def nibbles(stored: Tensor) -> Tensor:
    """4-bit numbers, the low one of each byte first: [..., n] of any integer dtype → uint8 [..., 2 × bytes]."""
    pairs = stored.view(torch.uint8).to(torch.int16)
    pairs |= pairs << 4
    pairs &= 0x0F0F
    return pairs.view(torch.uint8)


def awq_nibbles(words: Tensor) -> Tensor:
    """4-bit numbers of int32 [..., n] words that hold numbers 0 2 4 6 1 3 5 7: uint8 [..., 8 n] in order."""
    wide = words.to(torch.int64)
    low = wide & 0xFF  # bytes hold 0 2, 4 6, 1 3 and 5 7
    part = wide >> 8
    part &= 0xFF00
    low |= part  # 0 2 1 3
    part = wide & 0xFF00
    part <<= 24
    low |= part  # 0 2 1 3 _ _ _ _ 4 6
    wide &= 0xFF000000
    wide <<= 16
    low |= wide  # 0 2 1 3 _ _ _ _ 4 6 5 7
    high = low & 0xF0F00000F0F0
    high <<= 12
    low &= 0x0F0F00000F0F
    low |= high
    return low.view(torch.uint8)


def fp8_values(stored: Tensor) -> tuple[Tensor, float]:
    """float8_e4m3 as a float dtype, and the factor that is missing from it."""
    if stored.device.type != "cpu":  # checking for NaN would wait for the device
        return stored.to(torch.float32), 1.0
    codes = stored.view(torch.int8)
    if ((codes & FP8_NAN) == FP8_NAN).any():
        return stored.to(torch.float32), 1.0
    bits = codes.to(torch.int16)
    bits <<= 7
    bits &= FP8_BITS_OF_HALF
    return bits.view(torch.float16), FP8_AS_HALF_FACTOR


def fp4_values(codes: Tensor) -> Tensor:
    """e2m1 numbers, uint8 [...] below 16, as float16 less the factor `FP4_AS_HALF_FACTOR`."""
    bits = codes.to(torch.int16)
    bits <<= 12
    bits >>= 3  # the sign, four times, and the three other bits
    bits &= FP4_BITS_OF_HALF
    return bits.view(torch.float16)


def scale_values(stored: Tensor) -> tuple[Tensor, torch.dtype]:
    """Scales as float32, and the dtype that they stand for: exponents of two, uint8 or float8_e8m0, are bfloat16."""
    if stored.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return powers_of_two(stored), torch.bfloat16
    if stored.dtype == torch.float8_e4m3fn:
        values, factor = fp8_values(stored)
        return values.to(torch.float32) * factor, torch.bfloat16
    return stored.to(torch.float32), stored.dtype


def pair_values(stored: Tensor, table: Tensor) -> Tensor:
    """Two 4-bit codes a byte, the high one first: uint8 [n] → what `table` (float32 [16]) says for each, [2 n]."""
    pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)  # [256, 2]
    return pairs.view(torch.int64).flatten().index_select(0, stored.to(torch.int32)).view(torch.float32)


def powers_of_two(stored: Tensor) -> Tensor:
    """uint8 [...] exponents, 127 for 1, as float32; 255 is not a number."""
    return stored.view(torch.float8_e8m0fnu).to(torch.float32)
