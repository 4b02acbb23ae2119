"""Multiplies a few rows by a matrix of which only a code is known: no weight is written to memory.

A GPU reads, per weight, `bits` bits of code and a quarter of a bit of tops: 0.53 bytes with 4 bits, once for up to 64
rows. Decoding first reads the same, writes two bytes and reads them again, 4.53 in all. So a product could take as long
as its code takes to cross the memory bus, if decoding is short: two weights at a time are decoded in the halves of a
register, from words of eight, and tensor cores multiply. Counted in the compiled kernel, 9 of 12 instructions a weight
are integer ones for one row. A GPU that issues 64 of these per clock and processor needs for them 0.8 of the time that
the code's bytes take on an RTX 4090, 1.8 on a 3090, 3.5 on an A100 and 5.6 on an H200; one that issues 128, an RTX
5090, 0.6. Not yet measured on a GPU.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from loaders.dequantize.launch import DTYPES, no_tensor, rounded
from loaders.dequantize.lossless.plain import FLOATS
from loaders.lossless.bins import GROUP, Bins

STEPS = 6  # bits of a bin's middle, counted in least steps of a top
# Rows, outputs and warps of a program. Compiled for 8.9 in bfloat16: 80, 102 and 166 registers, nothing spilled; 12, 13
# and 17 instructions a weight, of which decoding takes 9. Blocks twice as wide need twice the registers for one
# instruction less, and programs must outnumber the processors of a GPU.
SHAPES = ((16, 16, 2), (32, 32, 4), (64, 32, 4))


@triton.jit
def _cells(code_at, count, word, inside, BITS: tl.constexpr):
    """Eight weights of each word: their numbers in the low three or four bits of 4, the first in the lowest; and what
    holds the signs of pairs, as `_signs` finds them."""
    if BITS == 3:
        low = tl.load(code_at.to(tl.pointer_type(tl.int16), bitcast=True) + word, inside, 0).to(tl.int32) & 0xFFFF
        low = (low | (low << 8)) & 0x00FF00FF
        low = (low | (low << 4)) & 0x0F0F0F0F
        low = (low | (low << 2)) & 0x33333333
    else:
        low = tl.load(code_at.to(tl.pointer_type(tl.int32), bitcast=True) + word, inside, 0)
    signs = low
    if BITS != 4:
        signs = tl.load(code_at + count // 8 * (BITS - 1) + word, inside, 0).to(tl.int32)
        signs = (signs | (signs << 12)) & 0x000F000F
    return low, signs


@triton.jit
def _signs(signs, PAIR: tl.constexpr, BITS: tl.constexpr):
    """The signs of weights PAIR and PAIR + 4 on top of the halves of a register."""
    if BITS == 4:
        return (signs << (12 - 4 * PAIR)) & -0x7FFF8000
    return (signs << (15 - PAIR)) & -0x7FFF8000


@triton.jit
def _bit(numbers, BIT: tl.constexpr, SUMS: tl.constexpr, BITS: tl.constexpr):
    """A bit of the middle of each number's bin: a sum modulo two of products of the number's bits."""
    total = numbers & 0
    for product in tl.static_range(1 << (BITS - 1)):
        if (SUMS >> (16 * BIT + product)) & 1:
            term = (numbers & 0) | 0x11111111
            for factor in tl.static_range(BITS - 1):
                if (product >> factor) & 1:
                    term &= numbers >> factor
            total ^= term
    return total


@triton.jit
def _below(numbers, SUMS: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr):
    """The middles of the bins of weights 0 and 4, 1 and 5, 2 and 6, 3 and 7, each in half a register."""
    low = _bit(numbers, 0, SUMS, BITS) | (_bit(numbers, 1, SUMS, BITS) << 1)
    low |= (_bit(numbers, 2, SUMS, BITS) << 2) | (_bit(numbers, 3, SUMS, BITS) << 3)
    high = _bit(numbers, 4, SUMS, BITS) | (_bit(numbers, 5, SUMS, BITS) << 1)
    even = (low & 0x0F0F0F0F) | ((high & 0x03030303) << 4)
    odd = ((low >> 4) & 0x0F0F0F0F) | (high & 0x30303030)
    left: tl.constexpr = 0x003F003F << SHIFT
    return (even << SHIFT) & left, (odd << SHIFT) & left, (even >> (8 - SHIFT)) & left, (odd >> (8 - SHIFT)) & left


@triton.jit
def _halves(patterns, signs, KEPT: tl.constexpr):
    """Two weights of a register."""
    patterns |= signs
    return patterns.to(tl.int16).to(KEPT, bitcast=True), (patterns >> 16).to(tl.int16).to(KEPT, bitcast=True)


@triton.jit
def _interleaved(even, odd):
    """As tl.interleave, which the interpreter only takes where it was chosen before triton was imported."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], 2 * even.shape[1]))


@triton.jit
def _weights(
    code_at, top_at, count, word, inside, base, least,
    SUMS: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """KEPT [rows, 8 * words]: the weights of words [rows, words], as `plain.approximated` gives them."""
    numbers, signs = _cells(code_at, count, word, inside, BITS)
    top = (tl.load(top_at + word // (GROUP // 8), inside, 0).to(tl.int32) + base) << SHIFT
    top = tl.maximum(top, least) - 1
    top |= top << 16
    first, second, third, fourth = _below(numbers, SUMS, BITS, SHIFT)
    zero, four = _halves(top - first, _signs(signs, 0, BITS), KEPT)
    one, five = _halves(top - second, _signs(signs, 1, BITS), KEPT)
    two, six = _halves(top - third, _signs(signs, 2, BITS), KEPT)
    three, seven = _halves(top - fourth, _signs(signs, 3, BITS), KEPT)
    even = _interleaved(_interleaved(zero, four), _interleaved(two, six))
    return _interleaved(even, _interleaved(_interleaved(one, five), _interleaved(three, seven)))


@triton.jit
def _product(
    x_at, code_at, top_at, bias_at, out_at, rows, outputs, words, x_row, base, least,
    SUMS: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, KEPT: tl.constexpr, FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One program computes OUTPUTS columns of all rows, WORDS words of 8 weights of each at a time."""
    row, output = tl.arange(0, ROWS)[:, None], tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    begin = output.to(tl.int64)[:, None] * words
    total = tl.full((ROWS, OUTPUTS), 0.0, tl.float32)
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)[None, :]
        inside = (output[:, None] < outputs) & (word < words)
        weights = _weights(
            code_at, top_at, outputs.to(tl.int64) * words * 8, begin + word, inside, base, least,
            SUMS, BITS, SHIFT, KEPT, GROUP,
        )  # fmt: skip
        column = first * 8 + tl.arange(0, WORDS * 8)[None, :]
        x = tl.load(x_at + row.to(tl.int64) * x_row + column, (row < rows) & (column < words * 8), 0.0)
        total = tl.dot(x.to(FACTOR), tl.trans(weights.to(FACTOR)), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_at + output, output < outputs, 0.0).to(tl.float32)[None, :]
    value = rounded(total, out_at.dtype.element_ty).to(out_at.dtype.element_ty)
    place = out_at + row.to(tl.int64) * outputs + output[None, :]
    tl.store(place, value, (row < rows) & (output[None, :] < outputs))


INTERPRETED = not isinstance(_product, triton.JITFunction)  # by numpy, which multiplies no bfloat16


def multiply(bins: Bins, code: Tensor, top: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """``[..., outputs]``, the product of ``x [..., inputs]`` and the weights, and the bias; None for over 64 rows.

    code, top: as `Encoded`'s of [outputs, inputs] weights, inputs a multiple of 32. Sums are in float32. Nothing but
    the result is allocated and nothing waits, so that a CUDA graph can record it.
    """
    inputs = x.shape[-1]
    rows, outputs = x.numel() // inputs, top.numel() * GROUP // inputs
    if not 1 <= rows <= SHAPES[-1][0]:
        return None
    x, shape = x.reshape(rows, inputs), x.shape[:-1]
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(*shape, outputs)
    block, columns, warps = next(sizes for sizes in SHAPES if rows <= sizes[0])
    with torch.cuda.device_of(out):
        _product[(triton.cdiv(outputs, columns),)](
            x, code, top, no_tensor(bias, x), out, rows, outputs, inputs // 8, x.stride(0),
            bins.kind.base, bins.middles[-1] + 1,
            SUMS=_sums(bins), BITS=bins.bits, SHIFT=bins.kind.shift, KEPT=DTYPES[FLOATS[bins.kind.name]],
            FACTOR=tl.float32 if INTERPRETED else DTYPES[x.dtype],
            HAS_BIAS=bias is not None, GROUP=GROUP, ROWS=block, OUTPUTS=columns, WORDS=16, num_warps=warps,
        )  # fmt: skip
    return out


@cache
def _sums(bins: Bins) -> int:
    """Which products of a number's bits add up, modulo two, to each bit of its bin's middle: 16 bits for each.

    Product p is that of the bits of the number that are set in p. Any function of bits is such a sum (Zhegalkin).
    """
    step = 1 << bins.kind.shift
    assert all(middle % step == 0 for middle in bins.middles), "a top and its bins have common steps"
    sums = 0
    for bit in range(STEPS):
        values = [middle // step >> bit & 1 for middle in bins.middles]
        for product in range(len(values)):
            parts = (value for number, value in enumerate(values) if number & product == number)
            sums |= (sum(parts) & 1) << 16 * bit + product
    return sums
