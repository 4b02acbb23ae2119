"""Rounds a matrix column by column, and corrects the columns that are left for each error (GPTQ, arXiv 2210.17323).

The error that counts is that of the outputs: (W - Q) G (W - Q)ᵀ, where G = Σ x xᵀ over the calibration's inputs x. The
columns of the largest inputs come first, while there is most to correct with. Scales are chosen beforehand, so that the
order needs no index in the file: it is the same format as without calibration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loaders.quantize.rounding import Errors, codes_to_words, extremes_of

# Clipping ratios of a group's range, of which the one with the least error is taken, weighted by the inputs' squares.
CLIPPINGS = (1.0, 0.95, 0.91, 0.87, 0.83, 0.79, 0.75, 0.7)
DAMPING = 0.01  # of the mean diagonal, added to it, as in the paper; ten times as much where that is not enough
BLOCK_COLUMNS = 128  # corrected one by one; those after them are corrected once a block, with one product


def round_with_feedback(
    weight: Tensor, gram: Tensor, bits: int, group_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Errors]:
    """Quantize a matrix [N, K] in float32, given G [K, K] in float32, on any device; `gram` is overwritten.

    Returns int32 words [N, K*bits/32] and scales [N, K/group] in `dtype`, both on the CPU, and errors, as `pack_rows`.
    """
    diagonal = gram.diagonal()
    unused = diagonal == 0  # inputs that are always zero: nothing is known of them, and nothing depends on them
    diagonal[unused] = 1.0
    scales = best_scales(weight, diagonal, bits, group_size, dtype)
    order = diagonal.argsort(descending=True)
    inverse = _inverse_factor(gram[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    codes[:, order] = _round_columns(weight[:, order], scales.float()[:, order // group_size], inverse, bits)
    rounded = (codes.unflatten(1, (-1, group_size)) * scales.float()[..., None]).flatten(1).to(dtype).to(torch.float32)
    errors = Errors(*(float(values.double().square().sum()) for values in (weight - rounded, weight)))
    return codes_to_words(codes.cpu(), bits), scales.cpu(), errors


def best_scales(weight: Tensor, importance: Tensor, bits: int, group_size: int, dtype: torch.dtype) -> Tensor:
    """The scale of each group, [N, K/group] in `dtype`. importance: [K], of the inputs."""
    groups, low = weight.unflatten(1, (-1, group_size)), -(1 << bits - 1)
    extremes = extremes_of(weight.to(dtype).reshape(-1, group_size).cpu()).to(weight.device).view(groups.shape[:2])
    weights = importance.view(-1, group_size)
    best, least = torch.empty_like(extremes, dtype=dtype), torch.full_like(extremes, torch.inf)
    for kept in CLIPPINGS:
        scales = (extremes * (kept / low)).to(dtype)
        steps = scales.to(torch.float32)[..., None]
        error = ((groups - (groups / steps).round_().clamp_(low, -low - 1) * steps).square_() * weights).sum(-1)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(least, error)
    return best


def _inverse_factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of G, [K, K]; in float64 where float32 is not precise enough."""
    mean = float(gram.diagonal().mean())
    for damping, dtype in ((DAMPING, torch.float32), (DAMPING, torch.float64), (10 * DAMPING, torch.float64)):
        damped = gram.to(dtype, copy=True)
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed and factor.isfinite().all():
            return factor.to(torch.float32)
    return torch.eye(len(gram), device=gram.device)  # plain rounding


def _round_columns(weight: Tensor, steps: Tensor, inverse: Tensor, bits: int) -> Tensor:
    """Integers of `weight` [N, K] in float32, which is overwritten. steps: [N, K]; inverse: [K, K], upper."""
    low = -(1 << bits - 1)
    rounded = torch.empty_like(weight, dtype=torch.int8)
    for start in range(0, weight.shape[1], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, weight.shape[1])
        columns, factor = weight[:, start:stop].T.contiguous(), inverse[start:stop, start:stop]
        block_steps = steps[:, start:stop].T.contiguous()
        left = torch.empty_like(columns)
        for index, (column, step) in enumerate(zip(columns, block_steps)):
            integers = (column / step).round_().clamp_(low, -low - 1)
            rounded[:, start + index] = integers
            torch.sub(column, integers.mul_(step), out=left[index]).div_(factor[index, index])
            columns[index + 1 :].addr_(factor[index, index + 1 :], left[index], alpha=-1)
        weight[:, stop:] -= left.T @ inverse[start:stop, stop:]
    return rounded
