"""Acceptance tables: what follows from their sums, whatever was observed, and which sums are refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sequoia_tree import DEFAULT_ACCEPTANCE
from sequoia_tree.acceptance.acceptance import (
    BINS,
    MAX_CHILDREN,
    SCALES,
    Acceptance,
    clustered_intervals,
    never_falling,
)

TABLE = (BINS, MAX_CHILDREN)
LAYER = st.floats(0, 1, allow_subnormal=False)


@st.composite
def tables(draw):
    """Any table, made from a seed: bins without contexts, children never observed, credits of all and of nothing."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = 10 ** numbers.uniform(0, 5)
    counts = numbers.integers(0, most, size=(BINS, 1), endpoint=True) * (numbers.random((BINS, 1)) < 0.8)
    counts = counts * (np.arange(MAX_CHILDREN) < numbers.integers(1, MAX_CHILDREN + 1))
    credits = counts * numbers.random(TABLE) ** numbers.choice((0.0, 0.1, 1.0, 10.0)) * (numbers.random(TABLE) < 0.9)
    return Acceptance(counts, credits, credits, np.zeros(len(SCALES)), 0)


def table(counts, rates, **changes):
    """A table with `counts` [bins] contexts and mean credits `rates`, [children] or [bins, children]."""
    counts = np.repeat(np.reshape(counts, (-1, 1)), MAX_CHILDREN, axis=1) * np.ones(TABLE)
    credits = counts * np.pad(np.atleast_2d(rates), ((0, 0), (0, MAX_CHILDREN - np.shape(rates)[-1])))
    values = {"counts": counts, "credits": credits, "squares": credits, "scale_losses": np.zeros(len(SCALES))}
    return Acceptance(**{**values, "scale_positions": 0, **changes})


def equal(one, other):
    return all(np.allclose(getattr(one, name), getattr(other, name)) for name in one.as_dict())


@settings(max_examples=60, deadline=None)
@given(tables())
def test_estimates_are_what_a_tree_can_be_grown_by(observed):
    chances, shares, costs = observed.first_child(), observed.shares(), observed.costs()
    assert np.all((chances > 0) & (chances < 1)) and np.all(np.diff(chances) >= 0)
    assert np.all(shares[:, 0] == 0) and np.all(shares[:, 1:] > 0) and np.all(shares.sum(1) <= 1 + 1e-9)
    assert np.all(np.diff(shares[:, 1:]) <= 1e-15)
    assert costs.dtype == np.float32 and costs.shape == TABLE
    assert np.all(np.isfinite(costs)) and np.all(costs > 0) and np.all(np.diff(costs) > 0)
    for vector in (observed.positional(), observed.falling()):
        assert np.all(vector >= 0) and vector.sum() <= 1 + 1e-9
    assert np.all(np.diff(observed.falling()) <= 1e-15)
    for width in (observed.intervals(), clustered_intervals([observed, observed, observed])):
        assert np.all((width >= 0) & (width <= 1))


def test_nothing_observed_gives_the_prior():
    empty, prior = Acceptance.empty(), Acceptance.prior()
    assert empty.positions == 0 and prior.positions == pytest.approx(100)
    assert np.allclose(prior.positional()[: len(DEFAULT_ACCEPTANCE)], DEFAULT_ACCEPTANCE)
    assert np.allclose(empty.first_child(), prior.credits[:, 0] / prior.counts[:, 0])
    assert np.all(np.diff(empty.first_child()) > 0)
    assert np.all(empty.positional() == 0) and np.all(empty.intervals() == 1)
    assert empty.scale() in SCALES


def test_much_evidence_outweighs_the_prior():
    rates = np.linspace(0.1, 0.9, BINS)
    later = (1 - rates)[:, None] * np.array([0.3, 0.2, 0.1, 0.1])
    observed = table(np.full(BINS, 1e6), np.hstack((rates[:, None], later)))
    assert np.allclose(observed.first_child(), rates, atol=1e-3)
    assert np.allclose(observed.shares()[:, 1:5], [0.3, 0.2, 0.1, 0.1], atol=1e-3)
    assert np.all(observed.shares()[:, 8:] < 1e-3)
    costs = observed.costs(damping=1.0)
    assert np.allclose(costs[:, 0], -np.log(rates), atol=1e-2)
    assert np.allclose(costs[5, 2:4], -np.log(later[5, 1:3]), atol=1e-2)
    assert np.allclose(observed.costs(damping=0.5)[:, 0], costs[:, 0] / 2)


def test_a_bin_with_few_contexts_follows_the_others():
    counts = np.full(BINS, 1000.0)
    counts[4] = 2
    rates = np.full((BINS, 1), 0.9)
    rates[4] = 0.0
    assert table(counts, rates).first_child()[4] > 0.8
    counts[4] = 1000
    assert table(counts, rates).first_child()[4] < 0.75  # as much evidence as elsewhere: it pulls the bins below down


def test_shares_of_later_children_are_measured_where_the_first_leaves_something():
    counts = np.full(BINS, 1e5)
    rates = np.zeros((BINS, 2))
    rates[:, 0] = 0.5
    rates[:3, 1], rates[-2:, 1] = 0.4, 0.1
    shares = table(counts, rates).shares()
    assert np.allclose(shares[:3, 1], 0.8, atol=0.01) and np.allclose(shares[-2:, 1], 0.2, atol=0.01)


def test_children_observed_in_fewer_contexts_are_averaged_over_those():
    counts, credits = np.zeros(TABLE), np.zeros(TABLE)
    counts[3, :2], credits[3, :2] = (100, 10), (60, 2)
    observed = Acceptance(counts, credits, credits, np.zeros(len(SCALES)), 0)
    assert observed.positions == 100
    assert observed.positional()[:3].tolist() == pytest.approx([0.6, 0.2, 0])
    counts[3, 2], credits[3, 2] = 1, 1  # one lucky context: the means add up to 1.8
    crowded = Acceptance(counts, credits, credits, np.zeros(len(SCALES)), 0).positional()
    assert crowded.sum() == pytest.approx(1) and crowded[0] / crowded[1] == pytest.approx(3)


def test_falling_pools_what_rises():
    assert table(np.full(BINS, 10), [0.5, 0.1, 0.2]).falling()[:4].tolist() == pytest.approx([0.5, 0.15, 0.15, 0])
    assert np.array_equal(Acceptance.prior().falling(), Acceptance.prior().positional())


def test_falling_is_the_prior_where_little_was_observed():
    prior = Acceptance.prior().positional()
    assert np.allclose(Acceptance.empty().falling(), prior)
    half = Acceptance.from_positional([0.5], 50).falling()
    assert half[0] == pytest.approx((0.5 + prior[0]) / 2) and half[1] == pytest.approx(prior[1] / 2)
    assert Acceptance.from_positional([0.5], 100).falling()[0] == pytest.approx(0.5)


def test_a_table_can_be_made_to_weigh_less():
    observed = table(np.full(BINS, 100.0), [0.5, 0.2], scale_losses=np.arange(7), scale_positions=50)
    lighter = observed.at_most(110)
    assert lighter.positions == pytest.approx(110) and lighter.scale_positions == 5
    assert np.allclose(lighter.positional(), observed.positional()) and lighter.scale() == observed.scale()
    assert equal(observed.at_most(1e9), observed) and equal(observed.at_most(0), Acceptance.empty())
    assert equal(Acceptance.empty().at_most(5), Acceptance.empty())


def test_intervals_of_independent_contexts():
    observed = table(np.full(BINS, 100.0), [0.3])
    assert observed.intervals()[0] == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 1099), rel=1e-3)
    assert observed.intervals()[5] == 0  # seen in 1,100 contexts, and never with a credit


def test_intervals_between_texts_cover_the_truth():
    """Texts whose contexts are all alike: 95 % of the intervals hold the truth, where independent ones would not."""
    numbers = np.random.default_rng(0)
    hits = naive_hits = 0
    for _ in range(400):
        chances = numbers.beta(2, 2, size=8)  # mean 0.5, of a whole text each
        texts = [table([size, *[0] * (BINS - 1)], [p]) for p, size in zip(chances, numbers.integers(50, 60, 8))]
        total = sum(texts, start=Acceptance.empty())
        error = abs(total.positional()[0] - 0.5)
        hits += error < clustered_intervals(texts)[0]
        naive_hits += error < total.intervals()[0]
    assert 0.92 < hits / 400 < 0.98 and naive_hits / 400 < 0.5
    assert np.all(clustered_intervals(texts[:2]) == 1)


def test_the_scale_of_least_loss():
    losses = np.arange(len(SCALES))[::-1]
    assert table(np.ones(BINS), [0.5], scale_losses=losses, scale_positions=10).scale() == SCALES[-1]


@pytest.mark.parametrize("positional", [[1.0], [0.0], [0.0, 1.0], [0.4, 0.3, 0.2], [0.999, 0.001], [1 / 40] * 40])
def test_tables_made_up_from_a_list_have_its_acceptances(positional):
    made_up = Acceptance.from_positional(positional, 500)
    assert made_up.positions == pytest.approx(500)
    expected = np.zeros(MAX_CHILDREN)
    expected[: len(positional)] = positional[:MAX_CHILDREN]
    assert np.allclose(made_up.positional(), expected)
    assert np.all(np.isfinite(made_up.costs()))


def test_sums_add_up():
    one, other = table(np.arange(BINS), [0.5]), table(np.ones(BINS), [0.2, 0.1], scale_positions=3)
    both = one + other
    assert both.positions == one.positions + other.positions and both.scale_positions == 3
    assert equal(both + Acceptance.empty(), other + one)


@given(arrays.arrays(np.float64, 9, elements=LAYER), arrays.arrays(np.float64, 9, elements=st.floats(0.1, 10)))
def test_pooling_is_monotone_and_keeps_the_mean(values, weights):
    pooled = never_falling(values, weights)
    assert np.all(np.diff(pooled) >= 0) and (pooled * weights).sum() == pytest.approx((values * weights).sum())
    assert np.array_equal(never_falling(np.sort(values), weights), np.sort(values))


@settings(max_examples=20, deadline=None)
@given(tables())
def test_tables_survive_json(observed):
    assert equal(Acceptance.from_dict(json.loads(json.dumps(observed.as_dict()))), observed)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("counts", [[1.0]], r"shape \[11, 32\]"),
        ("counts", [[1.0], [1.0, 2.0]], "counts must have shape"),
        ("counts", "many", "counts must hold numbers"),
        ("credits", None, "credits must hold numbers"),
        ("credits", np.full(TABLE, math.nan).tolist(), "credits must be finite"),
        ("credits", np.full(TABLE, -0.5).tolist(), "credits must be finite and not negative"),
        ("credits", np.full(TABLE, 1.5).tolist(), "larger than counts"),
        ("squares", np.full(TABLE, 1.5).tolist(), "larger than counts"),
        ("squares", np.full(TABLE, True).tolist(), "squares must hold numbers"),
        ("scale_losses", [1.0], "scale_losses must have shape"),
        ("scale_positions", math.inf, "scale_positions must be finite"),
        ("scale_positions", [3], "scale_positions must have shape"),
    ],
)
def test_what_no_table_can_be_is_refused(name, value, reason):
    values = table(np.ones(BINS), [0.5]).as_dict()
    with pytest.raises(ValueError, match=reason):
        Acceptance.from_dict({**values, name: value})


@pytest.mark.parametrize("values", [None, [], {}, {"counts": 1}, {**Acceptance.empty().as_dict(), "other": 1}])
def test_other_objects_are_refused(values):
    with pytest.raises(ValueError, match="an acceptance table holds counts"):
        Acceptance.from_dict(values)
