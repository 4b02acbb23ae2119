"""Sampling rules that exclude tokens by the shape of the whole distribution: scores [n, w] in and out."""

from __future__ import annotations

import torch
from torch import Tensor

_TOP_H_WIDTH = 100  # tokens that top-h looks at: a constant of transformers


def top_h(scores: Tensor, share: float) -> Tensor:
    """Keep the likeliest tokens whose entropy terms add up to `share` of the entropy of the 100 likeliest."""
    values, tokens = scores.topk(min(_TOP_H_WIDTH, scores.shape[-1]))
    probs = values.softmax(-1)
    terms = -probs * probs.log()  # NaN where float32 underflows, and then not kept
    kept = terms.cumsum(-1) <= share * _entropy(values.log_softmax(-1))
    kept[:, 0] = True
    return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, values.masked_fill(~kept, -torch.inf))


def typical(scores: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is nearest to the entropy, until they hold `mass` (arXiv 2202.00666)."""
    log_probs = scores.log_softmax(-1)
    distance = (-log_probs - _entropy(log_probs)).abs()
    ordered, order = distance.sort(-1)
    cumulative = log_probs.exp().gather(-1, order).cumsum(-1)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
    return scores.masked_fill(distance > ordered.gather(-1, last), -torch.inf)


def epsilon_cutoff(scores: Tensor, epsilon: float) -> Tensor:
    """Drop tokens less likely than `epsilon`, never the likeliest (arXiv 2210.15191)."""
    return _without(scores, scores.softmax(-1) < epsilon)


def eta_cutoff(scores: Tensor, epsilon: float) -> Tensor:
    """Drop tokens less likely than `epsilon` and than sqrt(epsilon) * exp(-entropy), never the likeliest."""
    log_probs = scores.log_softmax(-1)
    edge = (epsilon**0.5 * (-_entropy(log_probs)).exp()).clamp(max=epsilon)
    return _without(scores, log_probs.exp() < edge)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)


def _without(scores: Tensor, dropped: Tensor) -> Tensor:
    return scores.masked_fill(dropped & (scores < scores.amax(-1, keepdim=True)), -torch.inf)
