"""Factors on the scores of tokens that occurred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts, spare_column


@dataclass(frozen=True)
class RepetitionPenalty:
    """`repetition_penalty` (arXiv 1909.05858): scores of tokens in the context are divided by it, negative ones
    multiplied; once, however often a token occurred.
    """

    penalty: float

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        return _scaled(scores, contexts.seen, self.penalty)


@dataclass(frozen=True, eq=False)
class PromptBonus:
    """`encoder_repetition_penalty`: the inverse of a repetition penalty, for the tokens of the prompt, int64 [P].

    transformers takes the prompt of a decoder for the encoder's input.
    """

    penalty: float
    prompt: Tensor

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        return _scaled(scores, self.prompt.expand(len(scores), -1), 1 / self.penalty)


def _scaled(scores: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    vocab_size = scores.shape[-1]
    padded = torch.nn.functional.pad(scores, (0, 1))
    ids = spare_column(tokens, vocab_size)
    found = padded.gather(-1, ids)
    return padded.scatter(-1, ids, torch.where(found < 0, found * penalty, found / penalty))[:, :vocab_size]
