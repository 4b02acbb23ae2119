"""Triton: one value of ggml's blocks whose values are small integers times a scale."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def byte(bytes_at, place, inside):
    """The byte at `place`, as int32."""
    return tl.load(bytes_at + place, inside, 0).to(tl.int32)


@triton.jit
def half(halves_at, place, inside):
    """The float16 number at byte `place`, as float32."""
    return tl.load(halves_at + place // 2, inside, 0.0).to(tl.float32)


@triton.jit
def small_block(bytes_at, halves_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block of 32 that begins at byte `block`."""
    HAS_MINIMUM: tl.constexpr = KIND == "Q4_1" or KIND == "Q5_1"
    HAS_FIFTH: tl.constexpr = KIND == "Q5_0" or KIND == "Q5_1"
    BITS_AT: tl.constexpr = 4 if HAS_MINIMUM else 2
    NIBBLES_AT: tl.constexpr = BITS_AT + (4 if HAS_FIFTH else 0)
    if KIND == "Q8_0":
        number = tl.load(bytes_at + block + 2 + i, inside, 0).to(tl.int8, bitcast=True).to(tl.int32)
    else:
        number = (tl.load(bytes_at + block + NIBBLES_AT + i % 16, inside, 0).to(tl.int32) >> (i // 16 * 4)) & 15
    if HAS_FIFTH:
        number |= ((tl.load(bytes_at + block + BITS_AT + i // 8, inside, 0).to(tl.int32) >> (i % 8)) & 1) << 4
    if KIND == "Q4_0":
        number -= 8
    if KIND == "Q5_0":
        number -= 16
    value = number.to(tl.float32) * tl.load(halves_at + block // 2, inside, 0.0).to(tl.float32)
    if HAS_MINIMUM:
        value += tl.load(halves_at + block // 2 + 1, inside, 0.0).to(tl.float32)
    return value


@triton.jit
def large_block(bytes_at, halves_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block of 256 with minima that begins at byte `block`."""
    NIBBLES_AT: tl.constexpr = 48 if KIND == "Q5_K" else 16
    part, k = i // 32, i % 32
    number = (
        tl.load(bytes_at + block + NIBBLES_AT + part // 2 * 32 + k, inside, 0).to(tl.int32) >> (part % 2 * 4)
    ) & 15
    if KIND == "Q5_K":
        number |= ((tl.load(bytes_at + block + 16 + k, inside, 0).to(tl.int32) >> part) & 1) << 4
    # 12 bytes: scales 0 to 3, minima 0 to 3, and the low bits of both 4 to 7, whose 2 high bits are in the first 8
    first = part < 4
    low = tl.load(bytes_at + block + 4 + tl.where(first, part, part - 4), inside, 0).to(tl.int32)
    middle = tl.load(bytes_at + block + 4 + tl.where(first, part + 4, part), inside, 0).to(tl.int32)
    high = tl.load(bytes_at + block + 12 + part % 4, inside, 0).to(tl.int32)
    factor = tl.where(first, low & 63, (high & 15) | (low >> 6 << 4)).to(tl.float32)
    minimum = tl.where(first, middle & 63, (high >> 4) | (middle >> 6 << 4)).to(tl.float32)
    scale = tl.load(halves_at + block // 2, inside, 0.0).to(tl.float32) * factor
    return number.to(tl.float32) * scale - tl.load(halves_at + block // 2 + 1, inside, 0.0).to(tl.float32) * minimum


@triton.jit
def six_bits(bytes_at, halves_at, block, i, inside):
    """Value i of a Q6_K block of 256 that begins at byte `block`."""
    half, part, k = i // 128, i % 128 // 32, i % 32
    low = tl.load(bytes_at + block + half * 64 + part % 2 * 32 + k, inside, 0).to(tl.int32) >> (part // 2 * 4)
    high = tl.load(bytes_at + block + 128 + half * 32 + k, inside, 0).to(tl.int32) >> (part * 2)
    number = ((low & 15) | ((high & 3) << 4)) - 32
    factor = tl.load(bytes_at + block + 192 + i // 16, inside, 0).to(tl.int8, bitcast=True).to(tl.float32)
    scale = tl.load(halves_at + block // 2 + 104, inside, 0.0).to(tl.float32) * factor
    return number.to(tl.float32) * scale


@triton.jit
def two_bits(bytes_at, halves_at, block, i, inside):
    """Value i of a Q2_K block of 256 that begins at byte `block`."""
    half_block, part, k = i // 128, i % 128 // 32, i % 32
    number = (byte(bytes_at, block + 16 + half_block * 32 + k, inside) >> (part * 2)) & 3
    scales = byte(bytes_at, block + i // 16, inside)
    scale = half(halves_at, block + 80, inside) * (scales & 15).to(tl.float32)
    return number.to(tl.float32) * scale - half(halves_at, block + 82, inside) * (scales >> 4).to(tl.float32)


@triton.jit
def three_bits(bytes_at, halves_at, block, i, inside):
    """Value i of a Q3_K block of 256 that begins at byte `block`."""
    half_block, part, k, group = i // 128, i % 128 // 32, i % 32, i // 16
    low = (byte(bytes_at, block + 32 + half_block * 32 + k, inside) >> (part * 2)) & 3
    high = (byte(bytes_at, block + k, inside) >> (i // 32)) & 1
    factor = (byte(bytes_at, block + 96 + group % 8, inside) >> (group // 8 * 4)) & 15
    factor |= ((byte(bytes_at, block + 104 + group % 4, inside) >> (group // 4 * 2)) & 3) << 4
    scale = half(halves_at, block + 108, inside) * (factor - 32).to(tl.float32)
    return (low + high * 4 - 4).to(tl.float32) * scale


@triton.jit
def ternary(bytes_at, halves_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block of 256 of -1, 0 and 1 that begins at byte `block`."""
    if KIND == "TQ2_0":
        number = (byte(bytes_at, block + i // 128 * 32 + i % 32, inside) >> (i % 128 // 32 * 2)) & 3
        scale = half(halves_at, block + 64, inside)
    else:  # groups of 32 and 16 bytes of 5 digits, and one of 4 bytes of 4
        size = tl.where(i < 160, 32, tl.where(i < 240, 16, 4))
        begin = tl.where(i < 160, 0, tl.where(i < 240, 160, 240))
        first = tl.where(i < 160, 0, tl.where(i < 240, 32, 48))
        digit, k = (i - begin) // size, (i - begin) % size
        power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81))))
        number = (((byte(bytes_at, block + first + k, inside) * power) & 255) * 3) >> 8
        scale = half(halves_at, block + 52, inside)
    return (number - 1).to(tl.float32) * scale
