"""One cell: replies to the prompts in turn until there are enough passes."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

from comparison.cells import Cell, CountedReply, Measured
from offload_runtime.generation.decode import Step

Steps = Callable[[int, int], Iterator[Step]]
"""Of a prompt's number and a seed, the steps of a reply that goes on well beyond the tokens it is asked for."""


class HasTokens(Protocol):
    """A pass, or a step of a runtime."""

    @property
    def token_ids(self) -> list[int]: ...


Made = TypeVar("Made", bound=HasTokens)


@dataclass(frozen=True)
class Workload:
    """What every cell runs: `prompts` of them, each until it has `reply_tokens` tokens."""

    prompts: int
    reply_tokens: int
    passes: int
    replies: int
    seed: int

    def numbered(self) -> Iterator[tuple[int, int, int]]:
        """The number, the prompt's number and the seed of every cell's replies, without an end."""
        return ((number, number % self.prompts, self.seed + number) for number in count())

    def is_done(self, cell: Cell, replies: int, passes: int) -> bool:
        """Whether a cell has enough. Greedy replies never differ, so a prompt is answered once."""
        if cell.setting.temperature == 0 and replies >= self.prompts:
            return True
        return passes >= self.passes and replies >= self.replies


def up_to(enough: int, passes: Iterator[Made]) -> Iterator[Made]:
    """Passes up to the one that brings the reply to `enough` tokens.

    That one counts whole (Wald's identity: then the mean over passes is not biased by where replies end).
    """
    tokens = 0
    for made in passes:
        yield made
        tokens += len(made.token_ids)
        if tokens >= enough:
            return


def measure_cell(cell: Cell, steps: Steps, workload: Workload) -> Measured:
    """Run replies 0, 1, ... of the workload until it has enough."""
    replies: list[CountedReply] = []
    timed: list[Step] = []
    for number, prompt, seed in workload.numbered():
        if workload.is_done(cell, number, sum(reply.passes for reply in replies)):
            break
        with closing(steps(prompt, seed)) as reply:  # type: ignore[type-var]
            made = list(up_to(workload.reply_tokens, reply))
        if made[-1].finish_reason == "length" and len(made) > 1:
            made.pop()  # the context cut it short: left out
        timed += made[1:]  # the first reads the prompt too
        replies.append(CountedReply(prompt, seed, sum(len(step.token_ids) for step in made), len(made)))
    seconds = (sum(getattr(step, name) for step in timed) for name in ("draft_seconds", "target_seconds"))
    return Measured(cell, tuple(replies), len(timed), *seconds)
