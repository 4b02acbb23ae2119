"""Presence and frequency penalties, as OpenAI's interface defines them and vLLM applies them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts, spare_column


@dataclass(frozen=True)
class CountPenalty:
    """Subtracts `presence` from every token that was generated, and `frequency` as often as it was.

    prompt_length: tokens before this position are not counted.
    """

    presence: float
    frequency: float
    prompt_length: int

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        vocab_size = scores.shape[-1]
        ids = spare_column(contexts.since(self.prompt_length), vocab_size)
        counts = scores.new_zeros(len(scores), vocab_size + 1)
        counts = counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=scores.dtype))[:, :vocab_size]
        return scores - (self.frequency * counts + self.presence * (counts > 0))
