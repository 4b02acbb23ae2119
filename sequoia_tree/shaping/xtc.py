"""XTC ("exclude top choices", by p-e-w): with some probability, all but the least of the likely tokens are left out.

That choice is sampled for every token independently and used nowhere else. So the token follows a mixture of the two
distributions, and the mixture can be sampled directly: a distribution like any other, on trees as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGEST_THRESHOLD = 0.5  # above it two tokens cannot be likely


def exclude_top_choices(log_probs: Tensor, probability: float, threshold: float) -> Tensor:
    """The mixture, log-probabilities [n, w], of `log_probs` [n, w] and of them without the top choices.

    As in llama.cpp: of the tokens with at least `threshold` only the least likely stays, if there are two or more.
    """
    if threshold > _LARGEST_THRESHOLD:
        return log_probs
    likely = log_probs >= (math.log(threshold) if threshold else -math.inf)
    least = log_probs.masked_fill(~likely | (log_probs == -torch.inf), torch.inf).amin(-1, keepdim=True)
    left = log_probs.masked_fill(likely & (log_probs > least), -torch.inf).log_softmax(-1)
    if probability == 1:
        return left
    return torch.logaddexp(log_probs + math.log1p(-probability), left + math.log(probability))
