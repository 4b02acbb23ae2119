"""Plain decoding or the tree: whichever was measured to take fewer seconds per token.

A prediction adds up parts: passes, draft levels, acceptances. If a pass takes milliseconds, what it leaves out
decides, so whole steps of both are compared. Timing the slower one costs little, since it yields tokens too.
"""

from collections import deque
from statistics import fmean, median_low


class Pace:
    """Seconds per token of the latest steps; the prediction until there are a few steps."""

    _WINDOW = 64  # tokens per step vary by more than half; their mean over 64 steps by 8 %
    _LEAST = 4

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=self._WINDOW)
        self.predict(1.0, 1.0)

    def predict(self, seconds: float, tokens: float) -> None:
        """Set the predicted seconds and tokens of a step."""
        if not self.observed:
            self._set(seconds, tokens)

    def add(self, seconds: float, tokens: float) -> None:
        """Record a step. The median of the seconds counts, so that a few disturbed steps do not matter."""
        self._steps.append((seconds, tokens))
        if self.observed:
            self._set(median_low(seconds for seconds, _ in self._steps), fmean(tokens for _, tokens in self._steps))

    def renew(self) -> None:
        """Forget all but the last few steps, before new ones are measured."""
        while len(self._steps) > self._LEAST:
            self._steps.popleft()

    @property
    def observed(self) -> bool:
        """Whether there were enough steps."""
        return len(self._steps) >= self._LEAST

    def _set(self, seconds: float, tokens: float) -> None:
        self.tokens, self.seconds_per_token = tokens, seconds / tokens


class Contest:
    """Decides for each step whether it drafts a tree.

    The slower one is tried a few steps at a time: the first time if little time is lost, later as long as trials lose
    at most 2 % of all time against the faster one. The closer the two are, the more often it is tried. Plain decoding
    is tried only if it might win: its time does not depend on the text, and its prediction is never off by a factor of
    two. It reads no clock: the caller reports steps through `passed`.
    """

    _SHARE = 0.02  # of all seconds: the most that trials may lose
    _FIRST_TRIAL = 0.1  # seconds that the first trial may lose
    _TRIAL, _BETWEEN = 4, 16  # steps of one trial, and least steps between two
    _KEPT = 1.03  # within this factor of the other, the leader is kept
    _DOUBT = 2.0  # beyond this factor of the tree, plain decoding is not tried

    def __init__(self) -> None:
        self.plain, self.tree = Pace(), Pace()
        self.tree_leads: bool | None = None  # at the last call of `drafts`, trials aside
        self._trial = self._since = 0  # steps left of a trial; steps since the last one
        self._lost = self._seconds = 0.0

    def drafts(self) -> bool:
        """Whether the next step drafts a tree. Predict both paces before the first call."""
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
        """Record a step. usual: whether later steps are expected to take as long."""
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
        """(the leader's pace, the other's)."""
        return (self.tree, self.plain) if self.tree_leads else (self.plain, self.tree)

    def _affordable(self) -> bool:
        leader, other = self._paces
        if self.tree_leads and other.seconds_per_token > self._DOUBT * leader.seconds_per_token:
            return False
        loss = self._TRIAL * other.tokens * (other.seconds_per_token - leader.seconds_per_token)
        return loss <= (self._SHARE * self._seconds - self._lost if other.observed else self._FIRST_TRIAL)
