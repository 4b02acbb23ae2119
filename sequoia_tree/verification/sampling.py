"""From logits to the distribution that tokens are drawn from, and drawing from it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts
from sequoia_tree.shaping.rule import drawable, shaped
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.shaping.truncation import epsilon_cutoff, eta_cutoff, top_h, typical
from sequoia_tree.shaping.xtc import exclude_top_choices

_INF = math.inf
# Natural logarithm. Float32 underflows at e^-103 and is inexact below e^-87; less likely tokens are never drawn.
_LEAST_LOG_PROBABILITY = -80.0
# Tokens sorted at first for top-k and top-p, and 8 times more as long as they turn out not to be enough. More on a GPU,
# where that is known late.
_FIRST_WIDTH, _FIRST_GPU_WIDTH, _WIDER = 256, 1024, 8
# Logits over a smaller temperature may overflow float32; below the least, not every device has the float32 value.
_SMALL_TEMPERATURE, _LEAST_TEMPERATURE = 1e-3, 1e-30


def log_probs(logits: Tensor, sampling: Sampling, contexts: Contexts | None = None) -> Tensor:
    """Log-probabilities, float32 [n, V], of `logits` [n, V] shaped by `sampling`; -inf where a token is excluded.

    Same rules, in the same order, as transformers' `generate`: the rules of the request (see `processed`), temperature,
    top-h, top-k, top-p, min-p, typical-p, epsilon and eta cut-off; then XTC, which it does not know. Tokens tied at the
    edge of top-k all stay; of those tied at the edge of top-p the higher ids stay (`generate` leaves them to an
    unstable sort). Temperature 0 puts everything on the argmax. Where rules leave no token at all, and `generate`
    fails, the logits hold as they are.
    """
    if sampling.temperature == 0:
        scores = processed(logits, sampling, contexts)
        return torch.full_like(scores, -_INF).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    scores = _scores(logits, sampling, contexts)
    if not _cuts(sampling):
        return _finished(scores, sampling)
    return _nucleus(scores, sampling)


def first_width(logits: Tensor, sampling: Sampling) -> int | None:
    """A width for `bounded_log_distribution` of `logits` [n, V]; None if `log_probs` needs no sort and no wait.

    `log_probs` sorts whole rows on a GPU: for 1,000 rows of 128,256 tokens, a gigabyte of ids.
    """
    if not (logits.is_cuda and sampling.temperature and _cuts(sampling)):
        return None
    width = max(_FIRST_GPU_WIDTH, 2 * sampling.top_k)
    return width if width < logits.shape[-1] else None


def wider(width: int, logits: Tensor) -> int | None:
    """The width after one that was not enough; None where whole rows may as well be sorted."""
    return width * _WIDER if width * _WIDER * 4 <= logits.shape[-1] else None


def bounded_log_distribution(
    logits: Tensor, sampling: Sampling, width: int, contexts: Contexts | None = None
) -> tuple[Tensor, Tensor]:
    """`log_probs` at a temperature above 0, with top-k and top-p applied to the `width` likeliest tokens only.

    Also a bool [] on the device: whether they are enough in all rows, so that the result is the same. Rows where they
    are not keep all of them. Does not wait for the device.
    """
    return _among_highest(_scores(logits, sampling, contexts), sampling, width)


def _scores(logits: Tensor, sampling: Sampling, contexts: Contexts | None) -> Tensor:
    """`logits` [n, V] after all that comes before top-k, as float32."""
    scores = processed(logits, sampling, contexts)
    if sampling.rules:
        scores = drawable(scores, logits.float())
    if sampling.temperature != 1:
        scores = _tempered(scores, sampling.temperature)
    return scores if sampling.top_h is None else top_h(scores, sampling.top_h)


def _cuts(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def processed(logits: Tensor, sampling: Sampling, contexts: Contexts | None = None) -> Tensor:
    """`logits` [n, V] as float32, after the request's rules for the contexts they follow.

    This is what greedy decoding takes the argmax of.
    """
    scores = logits.float()
    if not sampling.rules:
        return scores
    assert contexts is not None and len(contexts.depths) == len(scores)
    return shaped(scores, sampling.rules, contexts)


def _tempered(scores: Tensor, temperature: float) -> Tensor:
    """`scores` over the temperature; for small temperatures shifted first, so that nothing overflows."""
    if temperature >= _SMALL_TEMPERATURE:
        return scores / temperature
    return (scores - scores.amax(-1, keepdim=True)) / max(temperature, _LEAST_TEMPERATURE)


def _finished(scores: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [n, w] of the tokens that top-k and top-p kept, once the other rules have left out theirs."""
    scores = _min_p(scores, sampling)
    if sampling.typical_p < 1:
        scores = typical(scores, sampling.typical_p)
    if 0 < sampling.epsilon_cutoff < 1:
        scores = epsilon_cutoff(scores, sampling.epsilon_cutoff)
    if 0 < sampling.eta_cutoff < 1:
        scores = eta_cutoff(scores, sampling.eta_cutoff)
    log_probs = scores.log_softmax(-1)
    if not sampling.xtc_probability:
        return log_probs
    return exclude_top_choices(log_probs, sampling.xtc_probability, sampling.xtc_threshold)


def _nucleus(scores: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [n, V] after top-k and top-p of `scores` [n, V].

    Sorting 128,256 scores takes 30 times as long as finding the 256 highest, which nearly always suffice. On a GPU
    all are sorted: checking whether fewer suffice would wait for it.
    """
    vocabulary = scores.shape[-1]
    width = vocabulary if scores.is_cuda else max(_FIRST_WIDTH, 2 * sampling.top_k)
    while width < vocabulary:
        distribution, enough = _among_highest(scores, sampling, width)
        if enough:
            return distribution
        width *= _WIDER
    return _among_highest(scores, sampling, vocabulary)[0]


def _among_highest(scores: Tensor, sampling: Sampling, width: int) -> tuple[Tensor, Tensor]:
    """The same from the `width` highest scores of each row, and whether these are enough in all rows: bool []."""
    values, ids = _highest(scores, width)
    kept = _truncated(values, sampling, scores)
    lowest_kept = kept.masked_fill(kept == -_INF, _INF).amin(-1)
    enough = (lowest_kept > values[:, 0]).all()  # then nothing that ties with a kept token lies outside
    return torch.full_like(scores, -_INF).scatter_(-1, ids, _finished(kept, sampling)), enough


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
        if sampling.top_k == 0 and width < vocabulary:  # then part of the distribution lies below the slice
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
    distribution = scores.softmax(-1)
    return scores.masked_fill(distribution < sampling.min_p * distribution.amax(-1, keepdim=True), -_INF)


def probabilities(log_probs: Tensor) -> Tensor:
    """exp(log_probs) as a new tensor, 0 where float32 underflows: the distribution that tokens are drawn from."""
    return F.threshold(log_probs, _LEAST_LOG_PROBABILITY, -_INF).exp_()


def into_probabilities(log_probs: Tensor) -> Tensor:
    """`probabilities`, written over `log_probs`."""
    return torch.threshold_(log_probs, _LEAST_LOG_PROBABILITY, -_INF).exp_()


def draw_without_replacement(log_probs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different tokens for each row of `log_probs` [m, V]: int64 [m, count], -1 where no token is left.

    In drawing order: each token is drawn from the distribution less the tokens before it, renormalised. That is the
    order of exponential noise over probabilities (the Gumbel-top-k trick, arXiv 1903.06059, less a logarithm). The
    noise is float64: uniform float32 numbers lie on a grid of 6e-8, too coarse for the tail of a large vocabulary,
    where a token of probability 1e-9 would never come first.
    """
    uniform = torch.rand(log_probs.shape, dtype=torch.float64, device=log_probs.device, generator=generator)
    noise = uniform.log_()  # below 0: excluded tokens get key 0, the first drawn the lowest key
    keys = torch.div(probabilities(log_probs), noise, out=noise)
    values, tokens = keys.topk(min(count, keys.shape[-1]), largest=False)
    return _filled_up(torch.where(values < 0, tokens, -1), count)


def highest_tokens(keys: Tensor, count: int) -> Tensor:
    """The tokens of the `count` highest keys in each row [m, V], highest first: int64 [m, count].

    -1 where there are fewer: -inf and NaN are not keys.
    """
    values, tokens = keys.topk(min(count, keys.shape[-1]))
    return _filled_up(torch.where(values > -_INF, tokens, -1), count)


def _filled_up(tokens: Tensor, count: int) -> Tensor:
    """`tokens` [m, at most count] as [m, count], -1 after the last."""
    return tokens if tokens.shape[-1] == count else F.pad(tokens, (0, count - tokens.shape[-1]), value=-1)


def draw_with_replacement(log_probs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` tokens for each row of `log_probs` [m, V], each drawn from the full distribution: int64 [m, count]."""
    distribution = probabilities(log_probs)
    return torch.stack([draw_rows(distribution, generator) for _ in range(count)], dim=1)


def draw(weights: Tensor, generator: torch.Generator) -> int:
    """One token with probability proportional to `weights` [V], which are not negative and need not sum to 1.

    -1 if they are not a distribution: NaN, infinite, or all 0.
    """
    return int(draw_rows(weights[None], generator))


def draw_rows(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row of `weights` [m, V], as `draw` draws it: int64 [m]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(len(weights), 1, dtype=torch.float64, device=weights.device, generator=generator)
    # `right`: the first token whose cumulative weight exceeds the point, so never one of weight 0
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    tokens = tokens.clamp(max=weights.shape[-1] - 1)
    total = cumulative[:, -1]
    return tokens.masked_fill(~((total > 0) & (total < _INF)), -1)
