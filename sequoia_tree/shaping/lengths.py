"""Rules that depend on how long the text is: end tokens kept away, forced or made likelier, beginnings held back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts

_LARGEST = 1e30  # so that a growing factor times a score stays a float32


@dataclass(frozen=True, eq=False)
class Excluded:
    """Excludes `tokens`, bool [V], after texts of `first` to `last` tokens; last None: of any length.

    Implements suppress_tokens, begin_suppress_tokens, min_length and min_new_tokens.
    """

    tokens: Tensor
    first: int = 0
    last: int | None = None

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        if self.last is None:
            return scores.masked_fill(self.tokens, -torch.inf)
        shortest, longest = contexts.range
        if longest < self.first or shortest > self.last:
            return scores
        there = (contexts.lengths >= self.first) & (contexts.lengths <= self.last)
        return scores.masked_fill(there[:, None] & self.tokens, -torch.inf)


@dataclass(frozen=True, eq=False)
class Forced:
    """After texts of exactly `length` tokens only `tokens`, bool [V], are left, all equally likely.

    Implements forced_bos_token_id and forced_eos_token_id.
    """

    tokens: Tensor
    length: int

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        shortest, longest = contexts.range
        if not shortest <= self.length <= longest:
            return scores
        only = torch.zeros_like(scores[0]).masked_fill_(~self.tokens, -torch.inf)
        return torch.where((contexts.lengths == self.length)[:, None], only, scores)


@dataclass(frozen=True, eq=False)
class EndGrowsLikelier:
    """`exponential_decay_length_penalty`: k tokens after the first `start`, the scores of the end `tokens`, bool [V],
    rise by their absolute value times factor^k - 1.
    """

    tokens: Tensor
    start: int
    factor: float

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        if contexts.range[1] <= self.start:
            return scores
        further = (contexts.lengths - self.start).clamp(min=0)
        growth = (torch.pow(self.factor, further.double()) - 1).clamp(max=_LARGEST).float()
        rise = (scores.abs() * growth[:, None]).masked_fill(~(self.tokens & scores.isfinite()), 0)
        return (scores + rise).clamp(max=torch.finfo(scores.dtype).max)
