"""Triton: one value of ggml's blocks whose codes stand for entries of a codebook."""

from __future__ import annotations

import triton
import triton.language as tl

from loaders.dequantize.ggml.triton_blocks import byte, half


@triton.jit
def word16(bytes_at, place, inside):
    return byte(bytes_at, place, inside) | byte(bytes_at, place + 1, inside) << 8


@triton.jit
def parity_sign(signs, j):
    """Bit j of 8 signs, the last of which makes the number of set ones even; 7 are given."""
    folded = signs ^ (signs >> 4)
    folded ^= folded >> 2
    folded ^= folded >> 1
    return tl.where(j < 7, signs >> j, folded) & 1


@triton.jit
def four_bits(bytes_at, halves_at, book_at, block, i, inside, KIND: tl.constexpr):
    """Value i of a block whose codes of 4 bits stand for one value each."""
    if KIND == "IQ4_XS":
        part, k = i // 32, i % 32
        code = byte(bytes_at, block + 8 + part * 16 + k % 16, inside)
        factor = (byte(bytes_at, block + 4 + part // 2, inside) >> (part % 2 * 4)) & 15
        factor |= ((word16(bytes_at, block + 2, inside) >> (part * 2)) & 3) << 4
        scale = half(halves_at, block, inside) * (factor - 32).to(tl.float32)
    else:
        k = i
        code = byte(bytes_at, block + (1 if KIND == "MXFP4" else 2) + i % 16, inside)
        if KIND == "MXFP4":
            exponent = byte(bytes_at, block, inside)
            bits = tl.where(exponent < 2, 0x00200000 << tl.minimum(exponent, 1), (exponent - 1) << 23)
            scale = bits.to(tl.float32, bitcast=True)
        else:
            scale = half(halves_at, block, inside)
    return tl.load(book_at + ((code >> (k // 16 * 4)) & 15), inside, 0).to(tl.float32) * scale


@triton.jit
def two_bit_groups(bytes_at, halves_at, book_at, block, i, inside, KIND: tl.constexpr):
    """Value i of an IQ2 block of 256: groups of 8 values."""
    group, j = i // 8, i % 8
    if KIND == "IQ2_XXS":  # 4 bytes of codes, and a word of signs and scale for 32 values
        code = byte(bytes_at, block + 2 + group // 4 * 8 + group % 4, inside)
        low = word16(bytes_at, block + 6 + group // 4 * 8, inside)
        word = low | word16(bytes_at, block + 8 + group // 4 * 8, inside) << 16
        sign = parity_sign((word >> (group % 4 * 7)) & 127, j)
        factor = (word >> 28) & 15
    elif KIND == "IQ2_XS":
        word = word16(bytes_at, block + 2 + group * 2, inside)
        code, sign = word & 511, parity_sign(word >> 9, j)
        factor = (byte(bytes_at, block + 66 + group // 4, inside) >> (group // 2 % 2 * 4)) & 15
    else:
        high = (byte(bytes_at, block + 66 + group // 4, inside) >> (group % 4 * 2)) & 3
        code = byte(bytes_at, block + 2 + group, inside) | high << 8
        sign = (byte(bytes_at, block + 34 + group, inside) >> j) & 1
        factor = (byte(bytes_at, block + 74 + group // 4, inside) >> (group // 2 % 2 * 4)) & 15
    scale = half(halves_at, block, inside) * (factor.to(tl.float32) + 0.5) * 0.25
    magnitude = tl.load(book_at + code * 8 + j, inside, 0).to(tl.float32)
    return tl.where(sign == 0, magnitude, -magnitude) * scale


@triton.jit
def three_bit_groups(bytes_at, halves_at, book_at, block, i, inside, KIND: tl.constexpr):
    """Value i of an IQ3 block of 256: groups of 4 values, the signs of 8 together."""
    group, j = i // 4, i % 8
    code = byte(bytes_at, block + 2 + group, inside)
    if KIND == "IQ3_XXS":
        low = word16(bytes_at, block + 66 + group // 8 * 4, inside)
        word = low | word16(bytes_at, block + 68 + group // 8 * 4, inside) << 16
        sign = parity_sign((word >> (group // 2 % 4 * 7)) & 127, j)
        scale = half(halves_at, block, inside) * (((word >> 28) & 15).to(tl.float32) + 0.5) * 0.5
    else:
        code |= ((byte(bytes_at, block + 66 + group // 8, inside) >> (group % 8)) & 1) << 8
        sign = (byte(bytes_at, block + 74 + group // 2, inside) >> j) & 1
        factor = (byte(bytes_at, block + 106 + group // 16, inside) >> (group // 8 % 2 * 4)) & 15
        scale = half(halves_at, block, inside) * (2 * factor + 1).to(tl.float32)
    magnitude = tl.load(book_at + code * 4 + i % 4, inside, 0).to(tl.float32)
    return tl.where(sign == 0, magnitude, -magnitude) * scale


@triton.jit
def one_bit_groups(bytes_at, halves_at, book_at, block, i, inside, KIND: tl.constexpr):
    """Value i of an IQ1 block of 256: groups of 8 of -1, 0 and 1, from all of which an eighth is taken or given."""
    group, j = i // 8, i % 8
    if KIND == "IQ1_S":
        code = byte(bytes_at, block + 2 + group, inside)
        word = word16(bytes_at, block + 34 + group // 4 * 2, inside)
        high, less = (word >> (group % 4 * 3)) & 7, word >> 15
        scale = half(halves_at, block, inside) * (2 * ((word >> 12) & 7) + 1).to(tl.float32)
    else:
        code = byte(bytes_at, block + group, inside)
        nibble = (byte(bytes_at, block + 32 + group // 2, inside) >> (group % 2 * 4)) & 15
        high, less = nibble & 7, nibble >> 3
        factor = (word16(bytes_at, block + 48 + group // 8 * 2, inside) >> (group // 2 % 4 * 3)) & 7
        bits = byte(bytes_at, block + 49, inside) >> 4
        bits |= byte(bytes_at, block + 51, inside) & 0xF0
        bits |= (byte(bytes_at, block + 53, inside) & 0xF0) << 4
        bits |= (byte(bytes_at, block + 55, inside) & 0xF0) << 8
        scale = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * (2 * factor + 1).to(tl.float32)
    entry = tl.load(book_at + (code | high << 8) * 8 + j, inside, 0).to(tl.float32)
    return (entry + tl.where(less == 0, 0.125, -0.125)) * scale
