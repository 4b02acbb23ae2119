"""No n-gram twice: `no_repeat_ngram_size`, and `encoder_no_repeat_ngram_size` for those of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts, spare_column


@dataclass(frozen=True, eq=False)
class NoRepeatedNgram:
    """Excludes the tokens that would complete an n-gram of `size` that occurred before in the context.

    prompt: int64 [P]; if given, only the n-grams in it count.
    """

    size: int
    prompt: Tensor | None = None

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        vocab_size = scores.shape[-1]
        begun = contexts.last(self.size - 1)
        excluded = torch.zeros(len(scores), vocab_size + 1, dtype=torch.bool, device=scores.device)
        for tokens in self._searched(contexts):
            if tokens.shape[1] >= self.size:
                _mark(excluded, tokens, begun, vocab_size)
        return scores.masked_fill(excluded[:, :vocab_size], -torch.inf)

    def _searched(self, contexts: Contexts) -> tuple[Tensor, ...]:
        """Where to look, [1 or n, any]: the text once for all contexts, then what reaches into each path."""
        if self.prompt is not None:
            return (self.prompt[None],)
        text = contexts.text.tokens
        return text[None], contexts.since(len(text) - self.size + 1)


def _mark(excluded: Tensor, tokens: Tensor, begun: Tensor, vocab_size: int) -> None:
    """Mark what followed in `tokens` wherever they agree with `begun` [n, size - 1]."""
    size = begun.shape[1] + 1
    windows = tokens.shape[1] - size + 1
    agree = torch.ones(len(begun), windows, dtype=torch.bool, device=begun.device)
    for place in range(size - 1):
        agree &= tokens[:, place : place + windows] == begun[:, place, None]
    followed = spare_column(tokens[:, size - 1 :], vocab_size)
    excluded.scatter_(1, torch.where(agree, followed, vocab_size), True)
