"""Plain decoding or the tree: whichever was seen to take fewer seconds per token.

Predictions add up parts: passes, levels of a draft, acceptances. Where a pass takes milliseconds, what they leave out
decides. So whole steps of both are compared. Timing the one thought slower costs little, since it yields tokens too.
"""

from collections import deque
from statistics import fmean, median_low


class Pace:
    """Seconds per token of the latest steps; before there are a few of them, as predicted."""

    _WINDOW = 64  # tokens of a step scatter by more than half: their mean, by 8 %
    _LEAST = 4

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=self._WINDOW)
        self.predict(1.0, 1.0)

    def predict(self, seconds: float, tokens: float) -> None:
        """What a step is expected to take and to yield."""
        if not self.observed:
            self._set(seconds, tokens)

    def add(self, seconds: float, tokens: float) -> None:
        """Take note of a step. Of their seconds the median counts: what disturbs a few steps says nothing."""
        self._steps.append((seconds, tokens))
        if self.observed:
            self._set(median_low(seconds for seconds, _ in self._steps), fmean(tokens for _, tokens in self._steps))

    def renew(self) -> None:
        """Forget all but the last few steps: new ones are to come."""
        while len(self._steps) > self._LEAST:
            self._steps.popleft()

    @property
    def observed(self) -> bool:
        """Whether there were steps enough."""
        return len(self._steps) >= self._LEAST

    def _set(self, seconds: float, tokens: float) -> None:
        self.tokens, self.seconds_per_token = tokens, seconds / tokens


class Contest:
    """Says for each step whether it drafts a tree.

    The slower one is tried a few steps at a time, first where that loses no time worth mentioning, then within 2 % of
    all time: by what those steps lost against the faster one, so the closer the two are, the more often. Plain decoding
    is tried only where it might win: its time depends on no text, and no prediction of it is wrong by a factor of two.
    It reads no clock; tell it by `passed` what steps took.
    """

    _SHARE = 0.02  # of all seconds: what trials may lose
    _FIRST_TRIAL = 0.1  # seconds that the first one may lose
    _TRIAL, _BETWEEN = 4, 16  # steps of one trial, and least steps between two
    _KEPT = 1.03  # times as slow as the other: then changing is not worth it
    _DOUBT = 2.0  # times as slow as the tree: then plain decoding needs no trial

    def __init__(self) -> None:
        self.plain, self.tree = Pace(), Pace()
        self.tree_leads: bool | None = None  # as of the last `drafts`, trials aside
        self._trial = self._since = 0  # steps left of a trial; steps since the last one
        self._lost = self._seconds = 0.0

    def drafts(self) -> bool:
        """Whether the next step is to have a tree. Before the first, predict both paces."""
        before = self.tree_leads
        kept = 1 if before is None else self._KEPT if before else 1 / self._KEPT
        self.tree_leads = self.tree.seconds_per_token <= kept * self.plain.seconds_per_token
        if self.tree_leads is not before:
            self._trial = self._since = 0
        elif not self._trial and self._since >= self._BETWEEN and self._affordable():
            self._trial = self._TRIAL
            self._paces[1].renew()
        return self.tree_leads is not (self._trial > 0)

    def passed(self, drafted: bool, seconds: float, tokens: float, usual: bool = True) -> None:
        """A step took so long and yielded so much. usual: whether later ones will take as long, as far as is known."""
        self._seconds += seconds
        if usual:
            (self.tree if drafted else self.plain).add(seconds, tokens)
        if drafted is self.tree_leads:
            self._since += 1
            return
        leader, _ = self._paces
        self._lost = max(0.0, self._lost + seconds - tokens * leader.seconds_per_token)
        self._trial = max(0, self._trial - usual)
        self._since = 0

    @property
    def _paces(self) -> tuple[Pace, Pace]:
        """Of the leader and of the other."""
        return (self.tree, self.plain) if self.tree_leads else (self.plain, self.tree)

    def _affordable(self) -> bool:
        leader, other = self._paces
        if self.tree_leads and other.seconds_per_token > self._DOUBT * leader.seconds_per_token:
            return False
        loss = self._TRIAL * other.tokens * (other.seconds_per_token - leader.seconds_per_token)
        return loss <= (self._SHARE * self._seconds - self._lost if other.observed else self._FIRST_TRIAL)
