"""One cell: replies to the prompts in turn until there are enough passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count

from comparison.cells import Cell, CountedReply, Measured
from offload_runtime.generation.decode import Step

Steps = Callable[[int, int], Iterator[Step]]
"""Of a prompt's number and a seed, the steps of a reply that goes on well beyond the tokens it is asked for."""


@dataclass(frozen=True)
class Workload:
    """What every cell runs. reply_tokens: by prompt number, the tokens after which a reply ends."""

    reply_tokens: Sequence[int]
    passes: int
    replies: int
    seed: int

    def reply(self, number: int) -> tuple[int, int]:
        """The prompt's number and the seed of every cell's reply of this number."""
        return number % len(self.reply_tokens), self.seed + number

    def is_done(self, cell: Cell, replies: int, passes: int) -> bool:
        """Whether a cell has enough. Greedy replies never differ, so a prompt is answered once."""
        if cell.temperature == 0 and replies >= len(self.reply_tokens):
            return True
        return passes >= self.passes and replies >= self.replies


@dataclass
class _Tally:
    """What a cell has so far."""

    replies: list[CountedReply] = field(default_factory=list)
    passes: int = 0
    timed_passes: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0

    def add(self, step: Step, is_first: bool) -> None:
        self.passes += 1
        if is_first:  # it reads the prompt too
            return
        self.timed_passes += 1
        self.draft_seconds += step.draft_seconds
        self.target_seconds += step.target_seconds


def measure_cell(cell: Cell, steps: Steps, workload: Workload) -> Measured:
    """Run replies 0, 1, ... of the workload until it has enough."""
    tally = _Tally()
    for number in count():
        if workload.is_done(cell, number, tally.passes):
            break
        prompt, seed = workload.reply(number)
        with closing(steps(prompt, seed)) as reply:  # type: ignore[type-var]
            tally.replies.append(_count(prompt, seed, reply, workload.reply_tokens[prompt], tally))
    return Measured(cell, tuple(tally.replies), tally.timed_passes, tally.draft_seconds, tally.target_seconds)


def _count(prompt: int, seed: int, steps: Iterator[Step], enough: int, tally: _Tally) -> CountedReply:
    """Run a reply until it has `enough` tokens. The pass that gets it there counts whole (Wald's identity: then the
    mean over passes is not biased by where replies end)."""
    tokens = passes = beyond_end = 0
    for step in steps:
        if step.finish_reason == "length" and passes:
            break  # the context cut it short: left out
        tally.add(step, is_first=passes == 0)
        tokens += len(step.token_ids)
        passes += 1
        if step.finish_reason or tokens >= enough:
            beyond_end = step.accepted + 1 - len(step.token_ids)
            break
    return CountedReply(prompt, seed, tokens, passes, beyond_end)
