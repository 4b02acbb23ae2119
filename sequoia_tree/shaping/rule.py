"""The form of a shaping rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts

_NEVER = 1e20  # a token whose score lies so far below the best has no probability, at any temperature


class Rule(Protocol):
    """Maps scores, float32 [n, V], of the token after each of n contexts to new ones; never changes them in place."""

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor: ...


def shaped(scores: Tensor, rules: Sequence[Rule], contexts: Contexts) -> Tensor:
    """`scores` [n, V] after all rules, one after the other."""
    for rule in rules:
        scores = rule(scores, contexts)
    return scores


def drawable(scores: Tensor, otherwise: Tensor) -> Tensor:
    """`scores` [n, V] of which a distribution can be made: `otherwise` [n, V] where no token is left.

    Scores so low that they stand for an exclusion become one, so that no logarithm of a probability is out of bounds.
    """
    best = scores.amax(-1, keepdim=True)
    return torch.where(best == -torch.inf, otherwise, scores.masked_fill(scores < best - _NEVER, -torch.inf))
