"""Rounds matrix rows to 4-bit or 8-bit integers: pure arithmetic, in blocks that stay in a core's cache.

A group's scale has the sign that maps its largest value to the most negative integer, since there is one more negative
integer than positive ones: with 4 bits this makes the step 1/8 smaller. Of a few clipping ratios the one with the least
squared error is taken. Together they reduce the relative error of normal weights in groups of 128 from 11.7 % to 9.8 %.
Zero points, which not every kernel for experts takes, would give 9.5 %; groups of 32 give 8.4 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.formats.weights import WORD_BITS
from loaders.quantize.recipe import CLIPPINGS

# Values per part. Smaller parts need more calls, and Python runs one call at a time for all threads (int4: 55 MB/s per
# core with 2^15, 167 with 2^18); larger ones leave the core's cache (97 with 2^20). `torch.round` is avoided: it starts
# a team of threads for 2048 values.
SERIAL_VALUES = 1 << 18
ROUNDING = 1.5 * 2**23  # adding it to a float32 and subtracting it again leaves the nearest integer, ties to even
# Smaller scales are inexact or zero in their dtype: such groups are rounded as if this were their largest value.
LEAST_VALUE = {torch.float16: 2.0**-17, torch.bfloat16: 2.0**-110, torch.float32: 2.0**-110}


@dataclass(frozen=True)
class Errors:
    """Sums over weights: squared quantization errors, and squared weights."""

    error: float
    norm: float

    @property
    def is_finite(self) -> bool:
        return self.norm < float("inf")  # False for NaN too


@torch.inference_mode()
def pack_rows(rows: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Errors]:
    """Quantize some rows of a matrix: [n, K] of a float dtype, K a multiple of `group_size` and of 8.

    Returns int32 words [n, K*bits/32], the first value in the lowest bits, each plus 2^(bits-1); scales [n, K/group] in
    the dtype of the rows; and the errors, which are not finite where the rows are not.
    """
    groups = rows.view(-1, group_size)
    extremes = extremes_of(groups)
    scales = (extremes * _best_clippings(groups, extremes, bits) / _low(bits)).to(rows.dtype)
    words = torch.empty(rows.shape[0], rows.shape[1] * bits // WORD_BITS, dtype=torch.int32)
    errors = _round(groups, scales, words.view(-1), bits)
    return words, scales.view(rows.shape[0], -1), errors


def codes_to_words(codes: Tensor, bits: int) -> Tensor:
    """int8 [n, K] from -2^(bits-1) on, which is overwritten, as int32 words [n, K*bits/32]."""
    words = torch.empty(len(codes), codes.shape[1] * bits // WORD_BITS, dtype=torch.int32)
    words.view(-1).copy_(_words(codes.view(-1), torch.empty_like(codes).view(-1), bits))
    return words


def _low(bits: int) -> int:
    return -(1 << bits - 1)


def _parts(groups: Tensor) -> Iterator[slice]:
    """Process some groups at once, so that the temporaries stay in the cache."""
    count, size = groups.shape
    step = max(1, SERIAL_VALUES // size)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _scratch(groups: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Reusable memory for one part: allocating it per part would cost more than the arithmetic."""
    return torch.empty(min(len(groups), max(1, SERIAL_VALUES // groups.shape[1])), groups.shape[1], dtype=dtype)


def extremes_of(groups: Tensor) -> Tensor:
    """The value of largest magnitude of each group [G, size], large enough for an exact scale: float32 [G]."""
    largest, smallest = torch.empty(2, len(groups))
    in_float = _scratch(groups)
    for part in _parts(groups):
        values = in_float[: part.stop - part.start].copy_(groups[part])
        torch.amax(values, -1, out=largest[part])
        torch.amin(values, -1, out=smallest[part])
    extremes = torch.where(largest >= -smallest, largest, smallest)
    return extremes.masked_fill_(extremes.abs() < LEAST_VALUE[groups.dtype], LEAST_VALUE[groups.dtype])


def _best_clippings(groups: Tensor, extremes: Tensor, bits: int) -> Tensor:
    """The clipping ratio of each group [G, size]: float32 [G]."""
    clippings, low = CLIPPINGS[bits], _low(bits)
    if len(clippings) == 1:
        return torch.full_like(extremes, clippings[0])
    errors = torch.empty(len(clippings), len(groups))
    to_steps = (low / extremes)[:, None]
    in_steps, scaled, rounded = (_scratch(groups) for _ in range(3))
    for part in _parts(groups):
        count = part.stop - part.start
        values, multiples, integers = in_steps[:count], scaled[:count], rounded[:count]
        values.copy_(groups[part]).mul_(to_steps[part])
        for index, kept in enumerate(clippings):
            torch.mul(values, 1 / kept, out=multiples)
            torch.add(multiples, ROUNDING, out=integers).sub_(ROUNDING).clamp_(low, -low - 1)
            torch.linalg.vector_norm(multiples.sub_(integers), dim=-1, out=errors[index, part])
    best, least = torch.full_like(extremes, clippings[0]), errors[0] * clippings[0]
    for kept, error in zip(clippings[1:], errors[1:]):
        best.masked_fill_(error.mul_(kept) < least, kept)
        torch.minimum(least, error, out=least)
    return best


def _round(groups: Tensor, scales: Tensor, words: Tensor, bits: int) -> Errors:
    """Write the words of all groups [G, size], given their scales [G]."""
    low, per_group = _low(bits), groups.shape[1] * bits // WORD_BITS
    steps = scales.to(torch.float32)[:, None]
    error, norm = torch.empty(2, len(groups))
    in_float, rounded, codes, shifted = (_scratch(groups, dtype) for dtype in (*2 * [torch.float32], *2 * [torch.int8]))
    for part in _parts(groups):
        count = part.stop - part.start
        values, integers = in_float[:count].copy_(groups[part]), rounded[:count]
        torch.linalg.vector_norm(values, dim=-1, out=norm[part])
        torch.div(values, steps[part], out=integers).add_(ROUNDING).sub_(ROUNDING).clamp_(low, -low - 1)
        place = words[part.start * per_group : part.stop * per_group]
        place.copy_(_words(codes[:count].copy_(integers).view(-1), shifted[:count].view(-1), bits))
        decoded = integers.mul_(steps[part])
        if groups.dtype != torch.float32:
            decoded = decoded.to(groups.dtype)  # as they will be dequantized
        torch.linalg.vector_norm(values.sub_(decoded), dim=-1, out=error[part])
    return Errors(*(float(norms.double().square().sum()) for norms in (error, norm)))


def _words(codes: Tensor, scratch: Tensor, bits: int) -> Tensor:
    """Pack int8 [n] into int32 words [n*bits/32], or int64 of a word each. `scratch` is like `codes`; writes both."""
    if bits == 8:
        return codes.bitwise_xor_(-128).view(torch.int32)  # flipping the top bit adds 128
    wide, shifted = codes.add_(8).view(torch.int64), scratch.view(torch.int64)
    for shift, kept in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        wide |= torch.bitwise_right_shift(wide, shift, out=shifted)
        wide &= kept
    return wide
