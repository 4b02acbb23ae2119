"""Chooses method, size and depth of the tree with the most tokens per second on this machine (Sequoia, section 3.3).

seconds per token = (pass_seconds(n) + draft_seconds(method, n, d)) / tokens(n, d)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_tree.shapes.construct import check_limits, checked_acceptance

Floats = NDArray[np.float64]
Seconds = Callable[[int], float]  # rows -> seconds

NO_TREE = "none"  # the method of plain decoding
# Most levels of a tree: a draft that is nearly the target has paths as long accepted, and where a pass takes seconds,
# so many levels of the draft are worth their time.
MAX_DEPTH = 192
_NEAR = 1.01  # within this factor of the fastest, fewer nodes are preferred
_KEPT = 1.03  # within this factor of the fastest, the current choice is kept
_ENOUGH = 0.97  # share of the tokens that a tree of any depth brings


def damped(acceptance: ArrayLike, power: float = 0.7) -> Floats:
    """The vector with its first entry raised to `power` and the others rescaled to share the rest as before.

    This corrects for correlated acceptances along a path: some contexts accept nearly everything. Paths therefore reach
    deeper than independent acceptances predict, most of all under traversal verification, and the best tree is deeper.
    ValueError as for `optimal_tree`, and for a power that is not in (0, 1].
    """
    vector = checked_acceptance(acceptance).copy()
    if not 0 < power <= 1:
        raise ValueError(f"power must be above 0 and at most 1 (which changes nothing), got {power}")
    first = vector[0] ** power
    vector[1:] *= (1 - first) / (1 - vector[0]) if vector[0] < 1 else 0.0
    vector[0] = first
    return vector


def reach_by_size(acceptance: ArrayLike, size: int, max_depth: int) -> Floats:
    """Expected tokens, float64 [size], of the best tree of at most 1, 2, … `size` nodes, none deeper than `max_depth`.

    Exact for a vector that never increases. In others, entries above an earlier one are lowered to it: a lower bound,
    much faster than `optimal_tree`. ValueError as for `optimal_tree`.
    """
    check_limits(size, max_depth=max_depth)
    products = np.ones(1)
    for level in _best_by_depth(_never_rising(checked_acceptance(acceptance)), size, max_depth):
        products = level.products
    return np.cumsum(np.pad(products, (0, size - len(products))))


def enough_depth(acceptance: ArrayLike, size: int, max_depth: int = MAX_DEPTH) -> int:
    """The least depth at which a tree of `size` nodes is expected to bring 97 % of what one of `max_depth` brings.

    For where no times are known: 9 to 12 levels for the published acceptance, 80 for a first child accepted in 0.95 of
    all cases with `damped`. ValueError as for `optimal_tree`.
    """
    check_limits(size, max_depth=max_depth)
    levels = _best_by_depth(_never_rising(checked_acceptance(acceptance)), size, max_depth)
    tokens = np.array([1.0, *(nodes.products.sum() for nodes in levels)])
    return int(np.argmax(tokens >= _ENOUGH * tokens[-1]))


@dataclass(frozen=True)
class Yield:
    """A method's tokens per pass, 1 + factor · (F - 1), where F is the expected tokens for `acceptance`.

    No more than one path of the tree and the bonus token, whatever the factor.
    factor: the measured correction, see `Correction`. ValueError as for `optimal_tree`, or for a negative factor.
    """

    acceptance: tuple[float, ...]
    factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "acceptance", tuple(checked_acceptance(self.acceptance).tolist()))
        if not 0 <= self.factor < math.inf:
            raise ValueError(f"factor must be 0 or more, got {self.factor}")


@dataclass(frozen=True)
class Choice:
    """A method with the limits of its tree, and its predicted speed.

    depth: the depth limit; 0 for plain decoding, whose method is "none" and whose size is 1. tokens_per_pass: with the
    measured correction; uncorrected_tokens: without it, for `Correction.add`. seconds_per_pass: drafting included.
    """

    method: str
    size: int
    depth: int
    tokens_per_pass: float
    seconds_per_pass: float
    uncorrected_tokens: float

    @property
    def seconds_per_token(self) -> float:
        return self.seconds_per_pass / self.tokens_per_pass


def choose(
    yields: Mapping[str, Yield],
    pass_seconds: Seconds,
    level_seconds: Seconds,
    max_size: int,
    max_depth: int,
    sizes: Sequence[int] | None = None,
    current: Choice | None = None,
    plain: bool = True,
) -> Choice:
    """The fastest of plain decoding and every method of `yields` at every size and depth; the smaller on near ties.

    pass_seconds: of a target pass over n nodes. level_seconds: of a draft pass over n nodes. "adaptive" drafts the root
    and then d - 1 expansion steps of (n - 1) // (d - 1) rows; every other method drafts level by level, with one row
    per node that has children. sizes: sizes to consider besides 1; by default powers of two, those times 1.5, and
    max_size. current: kept if it is nearly as fast. plain: False leaves out plain decoding if there is any tree.
    ValueError for limits below 1 node or 0 levels, for a method named "none", for times that are negative or not
    finite, and for a pass that takes 0 s.
    """
    check_limits(max_size, max_depth=max_depth)
    if NO_TREE in yields:
        raise ValueError(f'"{NO_TREE}" names plain decoding, which is always considered and has no yield')
    grid = tuple(sorted({min(size, max_size) for size in sizes or _default_sizes(max_size)} - {1}))
    check_limits(min(grid, default=1))
    passes = _times(pass_seconds, grid)
    choices: list[Choice] = []
    for method, yielded in yields.items():
        drafting = _drafting(yielded.acceptance, grid, max_depth)
        if drafting.depths:
            drafts = (_expansion_seconds if method == "adaptive" else _level_seconds)(drafting, level_seconds)
            choices += _best_of_each_size(method, yielded, drafting, passes + drafts, current)
    if plain or not choices:
        choices.append(Choice(NO_TREE, 1, 0, 1.0, float(_times(pass_seconds, (1,))[0]), 1.0))
    return _preferred(choices, current)


def _default_sizes(max_size: int) -> list[int]:
    powers = [2**k for k in range(max_size.bit_length())]
    return [max_size, *powers, *(power + power // 2 for power in powers[1:])]


def _times(seconds: Seconds, sizes: Sequence[int]) -> Floats:
    times = np.array([seconds(size) for size in sizes], dtype=np.float64)
    if not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"a pass takes a positive time, got {times.tolist()} s for {list(sizes)} nodes")
    return times


def _best_of_each_size(
    method: str, yielded: Yield, drafting: _Drafting, seconds: Floats, current: Choice | None
) -> Iterator[Choice]:
    """The best depth of each size, and also the depth of `current`; seconds [depths, sizes]."""
    longest = np.minimum(np.arange(drafting.depths)[:, None] + 2, drafting.sizes)
    tokens = np.minimum(1 + yielded.factor * (drafting.tokens - 1), longest)
    best = (seconds / tokens).argmin(axis=0)
    for column, size in enumerate(drafting.sizes):
        rows = {int(best[column])}
        if current and (current.method, current.size) == (method, size):
            rows.add(min(current.depth, drafting.depths) - 1)
        for row in rows:
            cell = row, column
            yield Choice(method, size, row + 1, float(tokens[cell]), float(seconds[cell]), float(drafting.tokens[cell]))


def _preferred(choices: list[Choice], current: Choice | None) -> Choice:
    fastest = min(choice.seconds_per_token for choice in choices)
    if current:
        for choice in choices:
            same = (choice.method, choice.size, choice.depth) == (current.method, current.size, current.depth)
            if same and choice.seconds_per_token <= _KEPT * fastest:
                return choice
    near = (choice for choice in choices if choice.seconds_per_token <= _NEAR * fastest)
    return min(near, key=lambda choice: (choice.size, choice.seconds_per_token))


@dataclass(frozen=True)
class _Drafting:
    """Results for one acceptance vector, for depth limits 1 … `depths` (larger limits change nothing) and each size.

    tokens: float64 [depths, sizes], expected tokens. parents: int32 [depths, sizes, depths], the number of nodes with
    children on each level, the root's first.
    """

    sizes: tuple[int, ...]
    depths: int
    tokens: Floats
    parents: NDArray[np.int32]


@lru_cache(maxsize=16)  # times change more often than acceptances
def _drafting(acceptance: tuple[float, ...], sizes: tuple[int, ...], max_depth: int) -> _Drafting:
    if not sizes:
        return _Drafting(sizes, 0, np.empty((0, 0)), np.empty((0, 0, 0), np.int32))
    limits = list(_best_by_depth(_never_rising(acceptance), sizes[-1], max_depth))
    depths, widths = len(limits), len(sizes) + 1
    tokens = np.empty((depths, len(sizes)))
    parents = np.zeros((depths, len(sizes), depths), dtype=np.int32)
    for row, nodes in enumerate(limits):
        tokens[row] = np.cumsum(nodes.products)[np.minimum(sizes, len(nodes.products)) - 1]
        # a node has children if its first child is taken: count first children, one level up
        firsts = np.flatnonzero(nodes.firsts)
        cells = np.searchsorted(sizes, firsts, side="right") * depths + nodes.depths[firsts] - 1
        counts = np.bincount(cells, minlength=widths * depths).reshape(widths, depths)
        parents[row] = counts.cumsum(axis=0)[:-1]
    return _Drafting(sizes, depths, tokens, parents)


def _level_seconds(drafting: _Drafting, level_seconds: Seconds) -> Floats:
    """Drafting times [depths, sizes] of static trees: one draft pass per level that has children."""
    return _draft_times(drafting.parents, level_seconds).sum(axis=2)


def _expansion_seconds(drafting: _Drafting, level_seconds: Seconds) -> Floats:
    """Drafting times [depths, sizes] of adaptive trees: the root, then expansion steps of equal width."""
    expansions = np.arange(drafting.depths)[:, None]  # a depth limit of 1 needs none
    widths = np.maximum((np.array(drafting.sizes) - 1) // np.maximum(expansions, 1), 1)
    return _draft_times(np.ones(1, dtype=np.int64), level_seconds) + expansions * _draft_times(widths, level_seconds)


def _draft_times(rows: NDArray[np.integer[Any]], level_seconds: Seconds) -> Floats:
    """Seconds of draft passes over `rows`, an array of any shape; 0 for 0 rows."""
    table = np.zeros(int(rows.max()) + 1)
    for count in np.unique(rows[rows > 0]):
        table[count] = level_seconds(int(count))
    if not np.all(np.isfinite(table)) or table.min() < 0:
        raise ValueError(f"a draft pass takes a time of 0 or more, got {table.min()} to {table.max()} s")
    return table[rows]


@dataclass(frozen=True)
class _Nodes:
    """The likeliest nodes in the order of the best trees: path products, depths, whether a first child; each [n]."""

    products: Floats
    depths: NDArray[np.int64]
    firsts: NDArray[np.bool_]


def _best_by_depth(acceptance: Floats, size: int, max_depth: int) -> Iterator[_Nodes]:
    """The `size` likeliest nodes for depth limits 1, 2, … until nothing changes; ties as in `best_first`.

    Level by level: the best nodes of a level are children of the best of the level above. A node that is not among the
    best at one limit is not among them at a deeper one, and neither are its descendants.
    """
    best = _Nodes(np.ones(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_))
    level = np.ones(1)
    for depth in range(1, max_depth + 1):
        least = best.products[size - 1] if len(best.products) == size else 0.0
        candidates = np.outer(level, acceptance).ravel()
        places = np.flatnonzero(candidates > least)
        if not len(places):
            return
        places = places[np.argsort(-candidates[places], kind="stable")[:size]]
        level = candidates[places]
        products = np.concatenate((best.products, level))
        order = np.argsort(-products, kind="stable")[:size]
        depths = np.concatenate((best.depths, np.full(len(level), depth)))
        firsts = np.concatenate((best.firsts, places % len(acceptance) == 0))
        best = _Nodes(products[order], depths[order], firsts[order])
        yield best


def _never_rising(acceptance: ArrayLike) -> Floats:
    return np.minimum.accumulate(np.asarray(acceptance))


class Correction:
    """Running ratio of measured to predicted tokens per pass, not counting the one that every pass yields.

    A pass counts half after 69 more. The ratio starts at 1 and returns to it while the method is not used, so that a
    method that did badly is tried again after some hundred passes.
    """

    _DECAY = 0.99
    _PRIOR_PASSES = 2  # passes with exactly the predicted tokens, as a prior

    def __init__(self) -> None:
        self._measured = self._predicted = self._prior = 0.0

    @property
    def factor(self) -> float:
        """The ratio, for `Yield`."""
        total = self._predicted + self._prior
        return (self._measured + self._prior) / total if total else 1.0

    def add(self, tokens: float, uncorrected_tokens: float) -> None:
        """Record a pass that yielded `tokens` where acceptances alone predicted `uncorrected_tokens`.

        Count the tokens that verification accepted, before an end token or a limit. ValueError for less than 1.
        """
        if not (1 <= tokens < math.inf and 1 <= uncorrected_tokens < math.inf):
            raise ValueError(f"a pass yields at least 1 token, got {tokens} where {uncorrected_tokens} were predicted")
        self.idle()
        self._measured += tokens - 1
        self._predicted += uncorrected_tokens - 1
        self._prior = self._prior or self._PRIOR_PASSES * (uncorrected_tokens - 1)

    def idle(self) -> None:
        """Record a pass that did not use this method."""
        self._measured *= self._DECAY
        self._predicted *= self._DECAY


class Chooser:
    """Keeps the choice up to date: after the first choice, choosing takes under 1 % of the passes' time.

    It chooses again once a yield, a time or the context has changed by more than 10 % since the last choice. It reads
    no clock: the caller reports times through `passed` and `took`. plain: False chooses the best tree if there is any,
    for a `Contest` against plain decoding.
    """

    _MOVED = 0.1
    _SHARE = 0.01

    def __init__(self, max_size: int, max_depth: int, sizes: Sequence[int] | None = None, plain: bool = True) -> None:
        self._limits, self._plain = (max_size, max_depth, sizes), plain
        self._choice: Choice | None = None
        self._seen: _Inputs | None = None  # the inputs of the choice
        self._chose = False  # whether the last call of `current` did
        self._cost: float | None = None  # seconds of the last choice; None until the first is reported
        self._choosing = self._in_passes = 0.0

    def current(
        self, yields: Mapping[str, Yield], pass_seconds: Seconds, level_seconds: Seconds, context_length: int
    ) -> Choice:
        """The choice to use now, as from `choose`; the same object until it changes."""

        def inputs(size: int) -> _Inputs:
            times = [seconds(rows) for seconds in (pass_seconds, level_seconds) for rows in (1, size, self._limits[0])]
            return _Inputs(dict(yields), (*times, context_length))

        choice = self._choice
        self._chose = choice is None or (
            self.due and (self._seen is None or inputs(choice.size).moved_from(self._seen, self._MOVED))
        )
        if choice is None or self._chose:
            choice = choose(yields, pass_seconds, level_seconds, *self._limits, current=choice, plain=self._plain)
            self._choice, self._seen = choice, inputs(choice.size)
        return choice

    def passed(self, seconds: float) -> None:
        """Record the seconds of a pass, drafting included."""
        self._in_passes += seconds

    def took(self, seconds: float) -> None:
        """Record the seconds of the last call of `current`, together with building the tree it chose."""
        if self._cost is not None:
            self._choosing += seconds
        if self._chose:
            self._cost = seconds

    @property
    def due(self) -> bool:
        """Whether a new choice is affordable; if not, the last one stands and `current` need not be called."""
        return self._choice is None or self._choosing + (self._cost or 0.0) <= self._SHARE * self._in_passes


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a choice. numbers: seconds of some passes and levels, and the context length."""

    yields: dict[str, Yield]
    numbers: tuple[float, ...]

    def moved_from(self, old: _Inputs, share: float) -> bool:
        """Whether any input differs from `old` by more than `share` of its old value."""
        if self.yields.keys() != old.yields.keys():
            return True
        factors = [(new.factor, old.yields[method].factor) for method, new in self.yields.items()]
        if any(abs(new - was) > share * was for new, was in [*factors, *zip(self.numbers, old.numbers)]):
            return True
        return any(
            _distance(new.acceptance, old.yields[method].acceptance) > share for method, new in self.yields.items()
        )


def _distance(new: tuple[float, ...], old: tuple[float, ...]) -> float:
    """Sum of differences relative to min(a1, 1 - a1) of `old`: 0.98 and 0.96 count as far apart."""
    if new == old:
        return 0.0
    difference = sum(abs(a - b) for a, b in zip_longest(new, old, fillvalue=0.0))
    least = min(old[0], 1 - old[0])
    return difference / least if least > 0 else math.inf
