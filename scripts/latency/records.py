"""What was measured, and the figures that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from latency.link import Link, best
from offload_runtime.generation.decode import Step
from scheduler.plan.plan import Plan


@dataclass(frozen=True)
class TimedReply:
    """One reply. `rest` are the steps after the first, which alone also reads the prompt: each is one pass."""

    prompt: int
    prompt_tokens: int
    repeat: int
    steps: tuple[Step, ...]

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


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one mode. Bytes, seconds, bytes per second; None where there is nothing to measure."""

    mode: str
    plan: Plan
    replies: tuple[TimedReply, ...]
    links: tuple[Link, ...]  # measured before every repeat and after the last
    direct: bool  # files are read past the page cache
    compute_seconds: float | None  # of a pass with all weights in place
    predicted: tuple[float, ...] | None  # seconds of `steps` by the cost model
    peak_device_bytes: int
    peak_host_bytes: int
    host_bytes_before: int

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The timed steps: of every reply all but the first."""
        return tuple(step for reply in self.replies for step in reply.rest)

    @property
    def link(self) -> Link:
        return best(self.links)

    @property
    def seconds(self) -> float:
        return sum(map(step_seconds, self.steps))

    @property
    def streamed_bytes(self) -> int | None:
        """Per pass."""
        return self.steps[0].streamed_bytes if self.steps else None

    @property
    def tokens_per_pass(self) -> float | None:
        return sum(len(step.token_ids) for step in self.steps) / len(self.steps) if self.steps else None

    @property
    def bytes_per_second(self) -> float | None:
        """Achieved on the link, over passes and drafts."""
        return sum(step.streamed_bytes for step in self.steps) / self.seconds if self.streamed_bytes else None

    @property
    def link_seconds(self) -> float | None:
        """The least time for a pass's bytes at the measured bandwidth."""
        return self.link.pass_seconds(self.plan, self.streamed_bytes) if self.streamed_bytes else None

    @property
    def link_share(self) -> float | None:
        """Of the measured bandwidth."""
        return self.link_seconds * len(self.steps) / self.seconds if self.link_seconds else None

    @property
    def predicted_seconds(self) -> float | None:
        """Of a pass, mean over those that were run."""
        return fmean(self.predicted) if self.predicted else None

    @property
    def prediction_ratio(self) -> float | None:
        """Predicted over measured seconds, means over the passes."""
        predicted = self.predicted_seconds
        return predicted / fmean(step.target_seconds for step in self.steps) if predicted else None

    @property
    def limit_seconds(self) -> float | None:
        """The larger of streaming alone and computing alone."""
        return max(self.link_seconds, self.compute_seconds) if self.link_seconds and self.compute_seconds else None

    @property
    def limit_ratio(self) -> float | None:
        """Seconds of a median pass over the limit."""
        median = percentile([step.target_seconds for step in self.steps], 50)
        return median / self.limit_seconds if median and self.limit_seconds else None


def step_seconds(step: Step) -> float:
    """Draft and pass."""
    return step.draft_seconds + step.target_seconds


def percentile(values: Sequence[float | None], percent: float) -> float | None:
    """Between the two nearest values; None without values."""
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percent)) if known else None
