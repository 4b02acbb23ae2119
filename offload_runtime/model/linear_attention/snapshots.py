"""Earlier states of a text, to go back to: a state cannot be cut back to an earlier token as rows of keys can.

Kept are the ends of turns, where the next prompt or another reply begins, and places between them every so many tokens,
for texts that are edited, cut short, or stopped. Their number is planned (`STATE_SNAPSHOTS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Generic, TypeVar

from scheduler.plan.memory import STATE_SNAPSHOTS

States = TypeVar("States")

# Tokens between two places in a turn. So many are read again in one pass, in the time that several tokens take.
INTERVAL = 256
_TURN_ENDS = 4  # that are kept, whatever lies between them


@dataclass(frozen=True)
class Snapshot(Generic[States]):
    """length: tokens of text before it. states: of all layers."""

    length: int
    states: States
    ends_turn: bool


class Snapshots(Generic[States]):
    """Those of one text, from the first to the last."""

    def __init__(self) -> None:
        self._kept: list[Snapshot[States]] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def lengths(self) -> list[int]:
        """Tokens of text before each."""
        return [kept.length for kept in self._kept]

    def add(self, length: int, states: States, ends_turn: bool) -> None:
        """Keep the states after `length` tokens, which is further than all others or as far as the last.

        Inside of a turn, only where the last place is far enough away.
        """
        last = self._kept[-1] if self._kept else None
        if last is not None and last.length == length:
            self._kept[-1] = replace(last, ends_turn=ends_turn or last.ends_turn)
        elif ends_turn or length - (last.length if last else 0) >= INTERVAL:
            self._kept.append(Snapshot(length, states, ends_turn))
        if len(self._kept) > STATE_SNAPSHOTS:
            least = _least_missed(self._kept)
            self._kept = [one for one in self._kept if one is not least]

    def back_to(self, length: int) -> Snapshot[States] | None:
        """The last of at most `length` tokens; those of more are dropped."""
        self._kept = [kept for kept in self._kept if kept.length <= length]
        return self._kept[-1] if self._kept else None

    def take_from(self, other: Snapshots[States]) -> None:
        """The same as those of another text."""
        self._kept = [*other._kept]


def _least_missed(kept: Sequence[Snapshot[States]]) -> Snapshot[States]:
    """The one, but for the newest and the last ends of turns, without which going back reads least.

    Texts that go back to behind it, up to the next one, would read as much more as lies between it and the one before.
    Going back is the rarer the further it leads.
    """
    turns = [one for one in kept if one.ends_turn][-_TURN_ENDS:]
    begins = [0, *(one.length for one in kept)]
    missed = [
        ((one.length - before) * (after.length - one.length) / (kept[-1].length - one.length), one)
        for before, one, after in zip(begins, kept, kept[1:])
        if not any(one is turn for turn in turns)
    ]
    return min(missed, key=itemgetter(0))[1]
