"""From logits to the law that tokens are drawn from, and drawing from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_INF = math.inf
# Natural logarithm. Float32 ends at e^-103 and is inexact from e^-87 on; what is less likely is never drawn at all.
_LEAST_LOG_PROBABILITY = -80.0
# Tokens sorted at first for top-k and top-p; 8 times more as long as they turn out not to be enough.
_FIRST_WIDTH = 256


@dataclass(frozen=True)
class Sampling:
    """How logits become a law. The defaults leave it as the model gives it; ValueError for values out of range."""

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # 1: off

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0 <= self.temperature < _INF, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number, 0 (off) or more"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (off) to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < _INF, "more than 0; 1 is off"),
        }
        for name, (fits, rule) in allowed.items():
            if not fits:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")


def log_law(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Log-probabilities, float32 [n, V], of `logits` [n, V] shaped by `sampling`; -inf where a token is excluded.

    Same rules, in the same order, as transformers' `generate`: repetition penalty over `seen` (see `penalised`),
    temperature, top-k, top-p, min-p. Tokens tied at the edge of top-k all stay; of those tied at the edge of top-p
    the higher ids stay (`generate` leaves them to an unstable sort). Temperature 0 puts everything on the argmax.
    """
    scores = penalised(logits, sampling, seen)
    if sampling.temperature == 0:
        return torch.full_like(scores, -_INF).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _min_p(scores, sampling).log_softmax(-1)
    values, ids = _nucleus(scores, sampling)
    return torch.full_like(scores, -_INF).scatter_(-1, ids, _min_p(values, sampling).log_softmax(-1))


def penalised(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """`logits` [n, V] as float32, with the repetition penalty for the tokens in `seen` (int64 [n, L]).

    A token may occur several times in a row of `seen`; ids outside the vocabulary, such as -1, are padding.
    """
    scores = logits.float()
    if seen is None or sampling.repetition_penalty == 1:
        return scores
    vocabulary = scores.shape[-1]
    padded = torch.nn.functional.pad(scores, (0, 1))  # one more column, for the padding to fall into
    ids = seen.masked_fill((seen < 0) | (seen >= vocabulary), vocabulary)
    found = padded.gather(-1, ids)
    penalty = sampling.repetition_penalty
    return padded.scatter_(-1, ids, torch.where(found < 0, found * penalty, found / penalty))[:, :vocabulary]


def _nucleus(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The highest of `scores` [n, V] with what top-k and top-p exclude set to -inf, and their token ids; both [n, w].

    Sorting 128,256 scores takes 30 times as long as finding the 256 highest, which nearly always suffice. A GPU sorts
    them all: whether fewer suffice is a question it would have to be waited for.
    """
    vocabulary = scores.shape[-1]
    width = vocabulary if scores.is_cuda else max(_FIRST_WIDTH, 2 * sampling.top_k)
    while width < vocabulary:
        values, ids = _highest(scores, width)
        kept = _truncated(values, sampling, scores)
        lowest_kept = kept.masked_fill(kept == -_INF, _INF).amin(-1)
        if (lowest_kept > values[:, 0]).all():  # so nothing that ties with a kept token lies outside
            return kept, ids
        width *= 8
    values, ids = _highest(scores, vocabulary)
    return _truncated(values, sampling, scores), ids


def _highest(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` highest scores of each row and their ids, rising, ties by id: the order of a stable sort."""
    if width == scores.shape[-1]:
        return scores.sort(stable=True)
    ids = scores.topk(width, sorted=False).indices.sort().values
    values, order = scores.gather(-1, ids).sort(stable=True)
    return values, ids.gather(-1, order)


def _truncated(values: Tensor, sampling: Sampling, scores: Tensor) -> Tensor:
    """`values` [n, w], the rising highest of `scores` [n, V], with -inf for what top-k and top-p exclude."""
    width, vocabulary = values.shape[-1], scores.shape[-1]
    if sampling.top_k:
        edge = values[:, -min(sampling.top_k, width), None]
        values = values.masked_fill(values < edge, -_INF)
    if sampling.top_p < 1:
        cumulative = values.softmax(-1).cumsum(-1)
        if sampling.top_k == 0 and width < vocabulary:  # then part of the law lies below the slice
            inside = (values.logsumexp(-1) - scores.logsumexp(-1)).exp()[:, None]
            cumulative = (1 - inside) + inside * cumulative
        excluded = cumulative <= 1 - sampling.top_p
        excluded[:, -1] = False
        values = values.masked_fill(excluded, -_INF)
    return values


def _min_p(scores: Tensor, sampling: Sampling) -> Tensor:
    """`scores` [n, w] with -inf for tokens less likely than min_p times the likeliest."""
    if sampling.min_p == 0:
        return scores
    law = scores.softmax(-1)
    return scores.masked_fill(law < sampling.min_p * law.amax(-1, keepdim=True), -_INF)


def probabilities(log_law: Tensor) -> Tensor:
    """exp(log_law) as a new tensor, 0 where float32 ends: the law that tokens are really drawn from."""
    return log_law.exp().masked_fill_(log_law < _LEAST_LOG_PROBABILITY, 0)


def draw_without_replacement(log_law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different tokens for each row of `log_law` [m, V]: int64 [m, count], -1 where no token is left.

    In drawing order: each token is drawn from the law less the tokens before it, renormalised. That is the order of
    Gumbel-perturbed log-probabilities (the Gumbel-top-k trick, arXiv 1903.06059). The noise is float64: uniform
    float32 numbers lie on a grid of 6e-8, too coarse for the tail of a large vocabulary, where a token of probability
    1e-9 would never come first.
    """
    uniform = torch.rand(log_law.shape, dtype=torch.float64, device=log_law.device, generator=generator)
    keys = uniform.log_().neg_().log_().neg_().add_(log_law).masked_fill_(log_law < _LEAST_LOG_PROBABILITY, -_INF)
    values, tokens = keys.topk(min(count, log_law.shape[-1]))
    tokens = tokens.masked_fill(values == -_INF, -1)
    return torch.nn.functional.pad(tokens, (0, count - tokens.shape[-1]), value=-1)


def draw_with_replacement(log_law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` tokens for each row of `log_law` [m, V], each drawn from the whole law: int64 [m, count]."""
    law = probabilities(log_law)
    return torch.stack([draw_rows(law, generator) for _ in range(count)], dim=1)


def draw(weights: Tensor, generator: torch.Generator) -> int:
    """One token with probability proportional to `weights` [V], which are not negative and need not sum to 1."""
    return int(draw_rows(weights[None], generator))


def draw_rows(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row of `weights` [m, V], as `draw` draws it: int64 [m]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(len(weights), 1, dtype=torch.float64, device=weights.device, generator=generator)
    # `right`: the first token whose cumulative weight exceeds the point, so never one of weight 0
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp(max=weights.shape[-1] - 1)
