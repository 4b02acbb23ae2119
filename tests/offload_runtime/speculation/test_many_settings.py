"""A server sees any number of temperatures, rules and grammars: what is kept of them is bounded, and only numbers."""

import gc
import weakref

import pytest

from offload_runtime.speculation.learned_acceptance import MOST_LEARNT, LearnedAcceptance
from offload_runtime.speculation.tree_policy import FixedTree, PassFacts, Situation, TextFacts, most_kept
from sequoia_tree.shaping.by_sampling import BySampling
from sequoia_tree.shaping.finite import FiniteScores
from sequoia_tree.shaping.settings import Sampling
from tests.offload_runtime.speculation.test_online_choice import PLAN, Known, automatic, built

__all__ = ["built"]  # a fixture
POLICIES = ("automatic", "adaptive", "sequoia")
MOST = most_kept(PLAN)  # type: ignore[arg-type]


class Grammar(FiniteScores):
    """A rule that can be seen to be gone."""


def policy_of(name: str) -> object:
    if name == "automatic":
        return automatic(Known(1000.0))
    return FixedTree(None, PLAN, name, "traversal", Known(1000.0))  # type: ignore[arg-type]


def write(policy: object, sampling: Sampling, repeatable: bool = False) -> object:
    """A step of one text."""
    method = policy.method(Situation(sampling, 10, repeatable))  # type: ignore[attr-defined]
    text = TextFacts(method, sampling, tokens=2, nodes=4, fresh_text=0)
    policy.passed(PassFacts((text,), 0.1, 1.0))  # type: ignore[attr-defined]
    return method


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_rules_go_with_their_request(name: str, repeatable: bool, built: list[str]) -> None:
    policy = policy_of(name)
    rule = Grammar()
    write(policy, Sampling(temperature=0.7, rules=(rule,)), repeatable)
    gone = weakref.ref(rule)
    del rule
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_what_is_kept_does_not_grow_with_temperatures(name: str, repeatable: bool, built: list[str]) -> None:
    policy = policy_of(name)
    methods = [weakref.ref(write(policy, Sampling(temperature=1 + n / 1000), repeatable)) for n in range(3 * MOST)]
    gc.collect()
    kept = [number for number, method in enumerate(methods) if method() is not None]
    assert kept == [*range(2 * MOST, 3 * MOST)], "those used last"


@pytest.mark.parametrize("name", POLICIES)
def test_a_text_that_is_written_now_keeps_its_tree(name: str, built: list[str]) -> None:
    """Beside any number of others that come and go: nothing is chosen or built anew for it."""
    policy, usual = policy_of(name), Sampling(temperature=0.7)

    def kept() -> object:
        write(policy, usual)
        return policy._settings.get(usual, 1) if name == "automatic" else write(policy, usual)  # type: ignore[attr-defined]

    first = kept()
    for number in range(3 * MOST):
        write(policy, Sampling(temperature=1 + number / 1000))
        assert kept() is first


def test_what_was_learnt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload_runtime.speculation.acceptance_store.load", lambda target, draft: None)
    known = LearnedAcceptance("target", "draft")  # type: ignore[arg-type]
    for number in range(MOST_LEARNT + 9):
        known.now(Sampling(temperature=1 + number / 1000))
    assert len(known._now) == MOST_LEARNT


def test_values_are_found_by_all_numbers_of_a_sampling() -> None:
    kept: BySampling[str] = BySampling(3)
    first, ruled = Sampling(temperature=0.5), Sampling(temperature=0.5, rules=(FiniteScores(),))
    kept.put("one", ruled, 1)
    kept.put("two", first, 2)
    assert (kept.get(first, 1), kept.get(ruled, 2), kept.get(first), kept.get(Sampling(), 1)) == (
        "one",
        "two",
        None,
        None,
    )
    kept.put("three", first, 3)
    kept.get(first, 1)
    kept.put("four", first, 4)
    assert kept.get(first, 2) is None and [value for _, value in kept.items()] == ["three", "one", "four"]
    assert all(sampling.rules == () for sampling, _ in kept.items())
    assert kept.obtain(lambda: "new", first, 1) == "one" and kept.obtain(lambda: "new", first, 9) == "new"
