"""Replies that were timed, and the figures that follow from any of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offload_runtime.generation.decode import Step


@dataclass(frozen=True)
class TimedReply:
    """The steps of one reply. `rest` are those after the first, which alone also reads the prompt: each is one pass."""

    steps: tuple[Step, ...]
    prompt: int = 0
    prompt_tokens: int = 0
    repeat: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [token for step in self.steps for token in step.token_ids]

    @property
    def rest(self) -> tuple[Step, ...]:
        return self.steps[1:]

    @property
    def seconds_to_first_token(self) -> float:
        return step_seconds(self.steps[0])

    @property
    def seconds_per_token(self) -> float | None:
        """Of the tokens after the first step; None if there are none."""
        tokens = sum(len(step.token_ids) for step in self.rest)
        return sum(map(step_seconds, self.rest)) / tokens if tokens else None


def step_seconds(step: Step) -> float:
    """Draft and pass."""
    return step.draft_seconds + step.target_seconds


def percentile(values: Sequence[float | None], percent: float = 50) -> float | None:
    """Between the two nearest values; None without values."""
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percent)) if known else None
