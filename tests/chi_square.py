"""Pearson's test, for the tests that compare samples with an exact distribution."""

import torch
from torch import Tensor


def p_value(counts: Tensor, distribution: Tensor) -> float:
    """Probability that a sample of the exact `distribution` deviates from it as much as `counts` do; both of one shape.

    Cells with fewer than 5 expected counts are pooled. 0 when something impossible was counted.
    """
    counts, expected = counts.flatten().double(), distribution.flatten().double() * counts.sum()
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]]).clamp_min(1e-9)
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = torch.tensor(len(counts) - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees / 2, statistic / 2)) if len(counts) > 1 else 1.0
