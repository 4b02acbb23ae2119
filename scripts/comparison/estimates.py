"""Tokens per pass with 95 % intervals, and ratios of two methods paired by prompt and seed.

Replies to one prompt hang together, so prompts are what is taken as independent (linearised ratio estimators of
cluster samples, Student's quantile).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comparison.cells import CountedReply, Measured
from sequoia_tree.acceptance.acceptance import student_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval, which are NaN where one prompt alone says nothing about spread."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def tokens_per_pass(measured: Measured) -> Estimate:
    """All tokens over all contexts."""
    tokens, contexts = _by_prompt(measured.replies).T
    value = tokens.sum() / contexts.sum()
    width = _half_width(tokens - value * contexts) / contexts.sum()
    return Estimate(float(value), float(value - width), float(value + width))


def paired_ratio(measured: Measured, reference: Measured) -> Estimate | None:
    """Tokens per pass of `measured` over that of `reference`, in the replies that both have; None without any.

    The interval is that of the logarithm.
    """
    ours, theirs = ({(reply.prompt, reply.seed): reply for reply in m.replies} for m in (measured, reference))
    common = [key for key in ours if key in theirs]
    if not common:
        return None
    counts = np.hstack([_by_prompt(replies[key] for key in common) for replies in (ours, theirs)])
    width = _half_width((counts / counts.sum(0)) @ [1, -1, -1, 1])
    tokens, contexts, their_tokens, their_contexts = counts.sum(0)
    log = math.log(tokens / contexts / (their_tokens / their_contexts))
    return Estimate(math.exp(log), math.exp(log - width), math.exp(log + width))


def _by_prompt(replies: Iterable[CountedReply]) -> Floats:
    """Tokens and contexts of each prompt's replies, [prompts, 2], in the order in which prompts first occur."""
    sums: dict[int, Floats] = {}
    for reply in replies:
        counts = np.array([reply.tokens, reply.contexts], dtype=np.float64)
        sums[reply.prompt] = sums.get(reply.prompt, np.zeros(2)) + counts
    return np.array(list(sums.values()))


def _half_width(residuals: Floats) -> float:
    """Of the 95 % interval of a sum of independent residuals whose own sum is 0; NaN for fewer than two."""
    count = len(residuals)
    if count < 2:
        return math.nan
    return student_quantile(count - 1) * math.sqrt(count / (count - 1) * float((residuals**2).sum()))
