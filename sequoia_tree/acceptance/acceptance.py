"""How often a draft's proposals are accepted: sums over contexts, and the estimates that follow from them.

A context is a position in a text, where target and draft each have a distribution of the next token. Children are
numbered 1, 2, … in drawing order; child k's credit at a context is the chance, in [0, 1], that it is accepted. Contexts
are binned by the draft's confidence, its largest probability m, which predicts acceptance well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE, checked_acceptance

Floats = NDArray[np.float64]

MAX_CHILDREN = 32
BIN_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)  # a context's bin: how many of these are ≤ m
BINS = len(BIN_EDGES) + 1
SCALES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
DAMPING = 0.6

_TABLE, _SCALED = (BINS, MAX_CHILDREN), (len(SCALES),)
_MIDDLES = (np.array((0.0, *BIN_EDGES)) + np.array((*BIN_EDGES, 1.0))) / 2
_GROUPS = np.array((0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3))  # bins whose later children are estimated together
_UNMEASURED_SCALE = 0.5
_NORMAL_QUANTILE = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_BIN_WEIGHT = 20.0  # the weight, in contexts, of the line through all bins in each bin
_LEAST_CHANCE, _LEAST_SHARE = 0.002, 1e-4  # keep costs below 16, where float32 still resolves 1e-6
_ROUNDING = 1e-5  # of sums kept with 6 digits
_STEP = 1e-6

# The prior for unmeasured pairs: how contexts spread over the bins, and how fast acceptance rises with m. Children
# beyond the 20 published values decay geometrically from the last of them.
_PRIOR_CONTEXTS = 100.0
_PRIOR_SPREAD = np.array((4, 7, 8, 8, 8, 8, 8, 8, 9, 11, 21)) / 100
_PRIOR_SLOPE = 0.5
_PRIOR_TAIL = 0.85


@dataclass(frozen=True, eq=False)
class Acceptance:
    """Sums over observed contexts; tables add up with `+`.

    counts, credits, squares: float64 [BINS, MAX_CHILDREN], by bin of m and child number. counts[b, k - 1]: contexts
    where child k was observed, which needs only the tokens of its earlier siblings; if the draft's distribution has no
    token left for it, its credit is 0. credits: sum of the credits; squares: sum of their squares. scale_losses:
    float64 [len(SCALES)], nats: for each t of SCALES, the sum over the contexts at temperature 0 of
    -log softmax(draft logits / t)[the target's argmax]. scale_positions: the number of those contexts.

    ValueError for other shapes, values that are negative or not finite, and sums larger than counts.
    """

    counts: Floats
    credits: Floats
    squares: Floats
    scale_losses: Floats
    scale_positions: float

    def __post_init__(self) -> None:
        for name, shape in (("counts", _TABLE), ("credits", _TABLE), ("squares", _TABLE), ("scale_losses", _SCALED)):
            object.__setattr__(self, name, _checked(name, getattr(self, name), shape))
        positions = _checked("scale_positions", self.scale_positions, ())
        object.__setattr__(self, "scale_positions", float(positions))
        most = self.counts * (1 + _ROUNDING) + _ROUNDING
        for name in ("credits", "squares"):
            if np.any(getattr(self, name) > most):
                raise ValueError(f"{name} are larger than counts: no context gives a child more than 1")

    @classmethod
    def empty(cls) -> Acceptance:
        """Nothing observed."""
        return cls(np.zeros(_TABLE), np.zeros(_TABLE), np.zeros(_TABLE), np.zeros(_SCALED), 0.0)

    @classmethod
    def from_positional(cls, positional: ArrayLike, contexts: float) -> Acceptance:
        """A plausible table of `contexts` contexts with these mean credits by child number.

        positional: [n], ValueError as for `optimal_tree`; children beyond MAX_CHILDREN are dropped. The spread of
        contexts over the bins and the rise of acceptance with m are the prior's; the rise is flattened to stay in
        [0, 1].
        """
        vector = np.zeros(MAX_CHILDREN)
        given = checked_acceptance(positional)[:MAX_CHILDREN]
        vector[: len(given)] = given
        first, mean = min(vector[0], 1.0), _PRIOR_SPREAD @ _MIDDLES
        slope = min(_PRIOR_SLOPE, (1 - first) / (_MIDDLES[-1] - mean), first / (mean - _MIDDLES[0]))
        chances = first + max(slope, 0.0) * (_MIDDLES - mean)
        shares = vector / (1 - first) if first < 1 else np.zeros(MAX_CHILDREN)
        rates = (1 - chances)[:, None] * shares
        rates[:, 0] = chances
        counts = np.repeat(contexts * _PRIOR_SPREAD[:, None], MAX_CHILDREN, axis=1)
        sums = counts * rates.clip(0, 1)
        return cls(counts, sums, sums, np.zeros(_SCALED), 0.0)  # squares: as if every credit were 0 or 1

    @classmethod
    def prior(cls) -> Acceptance:
        """For unmeasured pairs: DEFAULT_ACCEPTANCE as if observed in 100 contexts, rising with m.

        The rise is a guess, not a measurement. `first_child`, `shares` and `costs` add this to the observed table;
        `falling` does so if little was observed.
        """
        published = np.array(DEFAULT_ACCEPTANCE)
        later = published[-1] * _PRIOR_TAIL ** np.arange(1, MAX_CHILDREN - len(published) + 1)
        return cls.from_positional(np.concatenate((published, later)), _PRIOR_CONTEXTS)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Acceptance:
        """The inverse of `as_dict`, for values from a file. ValueError for values that are no table."""
        names = list(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or set(values) != set(names):
            found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"an acceptance table holds {', '.join(names)}, got {found}")
        return cls(**{name: values[name] for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__dataclass_fields__}

    def __add__(self, other: Acceptance) -> Acceptance:
        return Acceptance(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    def at_most(self, positions: float) -> Acceptance:
        """The same means with at most `positions` contexts."""
        if self.positions <= positions:
            return self
        share = positions / self.positions
        return Acceptance(**{name: getattr(self, name) * share for name in self.__dataclass_fields__})

    @property
    def positions(self) -> float:
        """Contexts observed."""
        return float(self.counts[:, 0].sum())

    def positional(self) -> Floats:
        """Acceptance by child number, [MAX_CHILDREN]: the mean credit over the contexts where a child was observed.

        A child that was observed in fewer contexts than the first (its earlier siblings were not drawn in the others)
        gets the mean over those contexts, which is unbiased if drawing them did not depend on the text. A child that
        was never observed gets 0. Scaled down if the means add up to more than 1.
        """
        means = _ratio(self.credits.sum(0), self.counts.sum(0))
        return means / max(1.0, means.sum())

    def falling(self) -> Floats:
        """`positional` for building static trees: never increasing, like the true acceptances without noise.

        `optimal_tree` is fast for such vectors. Works with nothing observed: contexts of the prior fill up to 100.
        """
        known = self + Acceptance.prior().at_most(max(0.0, _PRIOR_CONTEXTS - self.positions))
        weights = known.counts.sum(0) + _STEP  # a child never observed must weigh something
        return never_falling(known.positional()[::-1], weights[::-1])[::-1]

    def intervals(self) -> Floats:
        """Half widths of 95 % intervals around `positional`, [MAX_CHILDREN], for contexts that are independent.

        1 if fewer than two contexts were observed. Contexts of one text are correlated: see `clustered_intervals`.
        """
        counts = self.counts.sum(0)
        means = _ratio(self.credits.sum(0), counts)
        variances = (_ratio(self.squares.sum(0), counts) - means**2).clip(0)
        widths = _NORMAL_QUANTILE * np.sqrt(variances / (counts - 1).clip(1e-9))
        return np.where(counts < 2, 1.0, widths.clip(max=1.0))

    def first_child(self) -> Floats:
        """Chance that child 1 is accepted, by bin of m: float64 [BINS], in (0, 1), never decreasing.

        Bins with few contexts are shrunk towards a line through all bins, and that line towards the prior's.
        """
        known = self + Acceptance.prior()
        counts, credits = known.counts[:, 0], known.credits[:, 0]
        slope, level = np.polyfit(_MIDDLES, credits / counts, 1, w=np.sqrt(counts))
        line = (level + slope * _MIDDLES).clip(_LEAST_CHANCE, 1 - _LEAST_CHANCE)
        own_counts, own_credits = self.counts[:, 0], self.credits[:, 0]
        weights = own_counts + _BIN_WEIGHT
        return never_falling((own_credits + _BIN_WEIGHT * line) / weights, weights).clip(
            _LEAST_CHANCE, 1 - _LEAST_CHANCE
        )

    def shares(self) -> Floats:
        """Child k's share of 1 - a1, the probability that the first child leaves: float64 [BINS, MAX_CHILDREN].

        Child k is column k - 1; the first column is 0. Positive and never increasing from child 2 on, with a sum of at
        most 1. Estimated for four groups of neighbouring bins and smoothed over child numbers.
        """
        known = self + Acceptance.prior()
        chances = _ratio(known.credits[:, 0], known.counts[:, 0])
        left = known.counts * (1 - chances)[:, None]
        shares = np.zeros(_TABLE)
        for group in range(_GROUPS[-1] + 1):
            inside = group == _GROUPS
            shares[inside, 1:] = _tail(known.credits[inside, 1:].sum(0), left[inside, 1:].sum(0))
        return shares

    def costs(self, damping: float = DAMPING) -> NDArray[np.float32]:
        """The cost of child k under a node of bin b, in nats: float32 [BINS, MAX_CHILDREN].

        A node's priority is exp(-(sum of the costs along its path)). A cost is -log of the chance of acceptance, times
        `damping` for first children, because acceptances along a path are positively correlated. Finite, and strictly
        increasing from child to child. Works with nothing observed.
        """
        chances = self.first_child()[:, None]
        costs = -np.log((1 - chances) * self.shares().clip(_LEAST_SHARE))
        costs[:, :1] = -damping * np.log(chances)
        return (np.maximum.accumulate(costs, axis=1) + _STEP * np.arange(MAX_CHILDREN)).astype(np.float32)

    def scale(self) -> float:
        """The t of SCALES at which softmax(draft logits / t) predicts the target's argmax best; 0.5 if unmeasured."""
        return SCALES[int(self.scale_losses.argmin())] if self.scale_positions else _UNMEASURED_SCALE


def clustered_intervals(texts: Sequence[Acceptance]) -> Floats:
    """Half widths of 95 % intervals around `sum(texts).positional()`, [MAX_CHILDREN], one table per independent text.

    From the spread between texts, so correlations within a text do not matter (the linearised ratio estimator for
    cluster samples), with Student's quantile. 1 for fewer than three texts, too few to estimate their spread.
    """
    if len(texts) < 3:
        return np.ones(MAX_CHILDREN)
    counts = np.array([text.counts.sum(0) for text in texts])
    credits = np.array([text.credits.sum(0) for text in texts])
    total = counts.sum(0)
    residuals = credits - _ratio(credits.sum(0), total) * counts
    freedom = len(texts) - 1
    errors = _ratio(np.sqrt((residuals**2).sum(0) * len(texts) / freedom), total)
    return np.where(total > 0, (student_quantile(freedom) * errors).clip(max=1.0), 1.0)


def never_falling(values: Floats, weights: Floats) -> Floats:
    """The closest non-decreasing sequence to `values` [n] in weighted squares: pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist()):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, heavy, length = pools.pop()
            both = heavy + pool[1]
            pool = ((mean * heavy + pool[0] * pool[1]) / both, both, length + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


def _tail(credits: Floats, left: Floats) -> Floats:
    """Shares of children 2, 3, … [MAX_CHILDREN - 1]: smoothed over a quarter of the child number, never increasing."""
    places = np.arange(len(credits))
    reach = places // 4
    sums = np.cumsum([np.append(0, credits), np.append(0, left)], axis=1)
    upper = np.minimum(places + reach + 1, len(places))
    taken, weight = sums[:, upper] - sums[:, np.maximum(places - reach, 0)]
    shares = never_falling((taken / weight)[::-1], left[::-1])[::-1]
    return shares / max(1.0, shares.sum())


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution: exact for one degree of freedom, within 4 % for more.

    By Cornish and Fisher's expansion.
    """
    z = _NORMAL_QUANTILE
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _ratio(sums: Floats, counts: Floats) -> Floats:
    """sums / counts, 0 where counts are 0."""
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


def _checked(name: str, values: Any, shape: tuple[int, ...]) -> Floats:
    """`values` as float64 of this shape; ValueError unless they are finite numbers that are not negative."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must have shape {list(shape)}: {error}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got {str(values)[:80]}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    if not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ValueError(f"{name} must be finite and not negative")
    return array.astype(np.float64)
