"""`remove_invalid_values`: replaces scores that are not finite."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts


@dataclass(frozen=True)
class FiniteScores:
    """NaN becomes 0; infinities become the largest or smallest finite number."""

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        return scores.nan_to_num(nan=0.0)
