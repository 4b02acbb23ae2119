"""`remove_invalid_values`: scores that are no finite numbers are replaced."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts


@dataclass(frozen=True)
class FiniteScores:
    """What is no number becomes 0, what is infinite the largest or smallest number there is."""

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        return scores.nan_to_num(nan=0.0)
