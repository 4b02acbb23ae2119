"""Rounds the rows of a matrix to integers of 4 or 8 bits: pure arithmetic, in blocks that stay in a core's cache.

A group's scale has the sign that makes its largest value the most negative integer, of which there is one more than of
positive ones: with 4 bits that is a step smaller by 1/8. Of a few clippings the one with least squared error is taken.
Both together bring the error of normally distributed weights in groups of 128 from 11.7 % of their norm to 9.8 %; zero
points, which not every kernel for experts takes, would bring it to 9.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.quantization import CLIPPINGS

# torch works on tensors smaller than this in the calling thread, of which there are several
SERIAL_VALUES = (1 << 15) - 1
# Scales below are inexact or none in their dtype: groups of such small values are rounded as if the largest were this.
LEAST_VALUE = {torch.float16: 2.0**-17, torch.bfloat16: 2.0**-110, torch.float32: 2.0**-110}


@dataclass(frozen=True)
class Errors:
    """Sums over weights: of squared differences to what they decode to, and of their own squares."""

    error: float
    norm: float

    @property
    def is_finite(self) -> bool:
        return self.norm < float("inf")  # False for a number that is none, too


def pack_rows(rows: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Errors]:
    """Pack some rows of a matrix: [n, K] of a float dtype, K a multiple of `group_size` and of 8.

    Returns int32 words [n, K*bits/32], the first value in the lowest bits, each plus 2^(bits-1); scales [n, K/group] in
    the dtype of the rows; and the errors, which are not finite where the rows are not.
    """
    count, inputs = rows.shape
    codes = torch.empty(rows.shape, dtype=torch.int8)
    scales = torch.empty(count, inputs // group_size, dtype=rows.dtype)
    step = max(1, SERIAL_VALUES // group_size)
    parts = (tensor.view(-1, size).split(step) for tensor, size in ((rows, group_size), (codes, group_size)))
    error = norm = 0.0
    for stored, integers, scale in zip(*parts, scales.view(-1).split(step)):
        part = _round_groups(stored, integers, scale, bits)
        error, norm = error + part.error, norm + part.norm
    return _words(codes, bits), scales, Errors(error, norm)


def _round_groups(stored: Tensor, integers: Tensor, scale: Tensor, bits: int) -> Errors:
    """Round groups [G, group]: `integers` int8 [G, group] and `scale` [G] are written."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    values = stored.to(torch.float32)
    extreme = _extremes(values, LEAST_VALUE[stored.dtype])
    kept = _best_clipping(values, extreme, bits)
    scale.copy_(extreme * kept / low)
    steps = scale.to(torch.float32)[:, None]
    rounded = torch.round(values / steps).clamp_(low, high)
    integers.copy_(rounded)
    decoded = rounded.mul_(steps)
    if stored.dtype != torch.float32:
        decoded = decoded.to(stored.dtype)
    norm = torch.linalg.vector_norm(values, dim=-1)
    error = torch.linalg.vector_norm(torch.sub(values, decoded, out=rounded), dim=-1)
    return Errors(float(error.double().square().sum()), float(norm.double().square().sum()))


def _extremes(values: Tensor, least: float) -> Tensor:
    """The value of largest magnitude of each group [G], no smaller than `least`."""
    largest, smallest = values.amax(-1), values.amin(-1)
    extreme = torch.where(largest >= -smallest, largest, smallest)
    return torch.where(extreme.abs() < least, least, extreme)


def _best_clipping(values: Tensor, extreme: Tensor, bits: int) -> Tensor:
    """Which part of its range each group [G] keeps, as float32 [G]."""
    clippings = CLIPPINGS[bits]
    if len(clippings) == 1:
        return torch.full_like(extreme, clippings[0])
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    in_steps = values * (low / extreme)[:, None]
    errors = torch.empty(len(clippings), len(values))
    scaled, rounded = torch.empty_like(values), torch.empty_like(values)
    for kept, error in zip(clippings, errors):
        torch.mul(in_steps, 1 / kept, out=scaled)
        torch.round(scaled, out=rounded).clamp_(low, high)
        torch.linalg.vector_norm(scaled.sub_(rounded), dim=-1, out=error)
        error *= kept
    return torch.tensor(clippings)[errors.argmin(0)]


def _words(codes: Tensor, bits: int) -> Tensor:
    """int8 [n, K] as int32 words [n, K*bits/32]."""
    if bits == 8:
        return codes.bitwise_xor_(-128).view(torch.int32)  # the top bit flipped is 128 added
    wide = codes.add_(8).view(torch.int64)
    wide |= wide >> 4
    wide &= 0x00FF00FF00FF00FF
    wide |= wide >> 8
    wide &= 0x0000FFFF0000FFFF
    wide |= wide >> 16
    return wide.to(torch.int32)
