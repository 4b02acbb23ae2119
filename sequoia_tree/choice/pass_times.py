"""Predicts how long a pass takes from the number of its rows, learnt from measured passes."""

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from sequoia_tree.acceptance.acceptance import never_falling

_WINDOW = 9  # measurements kept per size: four slow ones in a row do not move their median
_HALF_LIFE = 32  # passes after which a size that is not measured again counts half
_LEAST_WEIGHT = 0.05  # of the oldest sizes: often nothing else tells the cost per row


@dataclass
class _SizeClass:
    """The latest measurements, (seconds, rows), of sizes within a factor of 1.4. last: when the newest was added."""

    last: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def point(self, now: int) -> tuple[float, float, float]:
        """(rows, seconds, weight) of the median; the lower of two, since disturbances only make a pass longer."""
        seconds, rows = sorted(self.recent)[(len(self.recent) - 1) // 2]
        return rows, seconds, max(_LEAST_WEIGHT, 0.5 ** ((now - self.last) / _HALF_LIFE))


class PassTimes:
    """Seconds of a pass as a function of its rows, or of a draft level as a function of the level's rows.

    Each size has the median of its latest measurements. The longer a size was not measured, the closer it moves to one
    line, fixed + per_row · rows, fitted to the relative errors of all sizes. A line alone would miss the knee where
    computing outgrows the link; medians alone would never forget a size that was measured at a bad moment. Beyond the
    measured sizes the line's slope applies. Between two of them the lowest plausible time is predicted: a size that is
    thought too fast gets tried and measured, one that is thought too slow never does.

    floor: the least seconds of a pass, such as streamed bytes over bandwidth; a lower measurement overrides it.
    per_row: the slope while all measurements are of one size. ValueError for numbers below 0 or not finite.
    """

    def __init__(self, floor: float = 0.0, per_row: float = 0.0):
        for name, value in (("floor", floor), ("per_row", per_row)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more seconds, got {value}")
        self._floor, self._prior = floor, per_row
        self._classes: dict[int, _SizeClass] = {}
        self._added = 0
        self._curve: _Curve | None = None

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._added > 0

    def add(self, rows: int, seconds: float) -> None:
        """Record one pass. ValueError for less than one row, or for a time that is not positive and finite.

        For several passes timed together, add their mean once at the mean of their rows: exact on a line.
        """
        if rows < 1 or not 0 < seconds < math.inf:
            raise ValueError(f"a pass has at least 1 row and takes a positive time, got {rows} rows in {seconds} s")
        self._added += 1
        # bit_length of the square: two classes per power of two, so 64, 96 and 128 rows are kept apart
        sizes = self._classes.setdefault((rows * rows).bit_length(), _SizeClass())
        sizes.last = self._added
        sizes.recent.append((seconds, rows))
        self._curve = None

    def seconds(self, rows: int) -> float:
        """Predicted seconds, never fewer for more rows. Before any measurement, from the given floor and slope."""
        if not self.known:
            return max(self._floor, self._prior * rows)
        if self._curve is None:
            points = [self._classes[key].point(self._added) for key in sorted(self._classes)]
            self._curve = _Curve.through(points, self._prior)
        return max(min(self._floor, self._curve.seconds[0]), self._curve.at(rows))


@dataclass(frozen=True)
class _Curve:
    """Points with increasing rows and seconds, and the slope beyond the last."""

    rows: list[float]
    seconds: list[float]
    slope: float

    @classmethod
    def through(cls, points: list[tuple[float, float, float]], prior: float) -> "_Curve":
        """From (rows, seconds, weight), sorted by rows."""
        fixed, slope = _line(points, prior)
        shrunk = [(1 - weight) * (fixed + slope * x) + weight * y if len(points) > 1 else y for x, y, weight in points]
        rows, _, weights = zip(*points)
        return cls(list(rows), never_falling(np.array(shrunk), np.array(weights)).tolist(), slope)

    def at(self, rows: float) -> float:
        index = bisect_left(self.rows, rows)
        if index == len(self.rows):
            return self.seconds[-1] + self.slope * (rows - self.rows[-1])
        x, y = self.rows[index], self.seconds[index]
        if index == 0:  # fewer rows save at most their share of the time
            return max(y - self.slope * (x - rows), y * rows / x)
        left, low = self.rows[index - 1], self.seconds[index - 1]
        straight = low + (y - low) * (rows - left) / (x - left)
        return min(straight, max(low, y * rows / x))  # as if the larger size had no fixed cost


def _line(points: list[tuple[float, float, float]], prior: float) -> tuple[float, float]:
    """(fixed, per_row), both at least 0, by least squared relative errors; the slope is `prior` for a single point."""
    weights = [weight / seconds**2 for _, seconds, weight in points]
    total = sum(weights)
    mean_rows = sum(w * rows for w, (rows, _, _) in zip(weights, points)) / total
    mean_seconds = sum(w * seconds for w, (_, seconds, _) in zip(weights, points)) / total
    spread = sum(w * (rows - mean_rows) ** 2 for w, (rows, _, _) in zip(weights, points))
    slope = prior
    if len(points) > 1:
        common = sum(w * (rows - mean_rows) * (t - mean_seconds) for w, (rows, t, _) in zip(weights, points))
        slope = common / spread
    slope = min(max(slope, 0.0), mean_seconds / mean_rows)
    return mean_seconds - slope * mean_rows, slope
