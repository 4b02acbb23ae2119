"""Chooses the tree that each step drafts."""

from dataclasses import dataclass
from typing import Protocol

from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.methods import PLAIN, Method, adaptive_method, static_method
from offload_runtime.speculation.verification import Scored
from scheduler.plan.plan import Plan
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.verify import AcceptedPath

NEWS = 1.25  # a method is rebuilt once this many times as many positions are known


@dataclass(frozen=True)
class PassFacts:
    """A finished step: its tokens before the reply is cut off, the nodes of its tree, and its seconds.

    fresh_text: tokens of the text that the pass read before the root.
    """

    tokens: int
    nodes: int
    fresh_text: int
    draft_seconds: float
    target_seconds: float


class TreePolicy(Protocol):
    """Chooses the method of every step, and learns from it.

    repeatable: use only what was known when the models were loaded, so that a seed gives the same text again.
    """

    def method(self, sampling: Sampling, text_length: int, repeatable: bool) -> Method:
        """How to draft and verify the next step."""
        ...

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        """Record what a step accepted."""
        ...

    def passed(self, method: Method, sampling: Sampling, facts: PassFacts) -> None:
        """Record what a step cost."""
        ...


class PlainDecoding:
    """Never drafts a tree."""

    def method(self, sampling: Sampling, text_length: int, repeatable: bool) -> Method:
        return PLAIN

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        pass

    def passed(self, method: Method, sampling: Sampling, facts: PassFacts) -> None:
        pass


class FixedTree:
    """One kind of tree of the planned size; adaptive trees update their priorities as more acceptance is measured."""

    def __init__(self, draft: Draft, plan: Plan, tree: str, rule: str, known: LearnedAcceptance):
        self._draft, self._plan, self._tree, self._rule, self._known = draft, plan, tree, rule, known
        self._methods: dict[tuple[Sampling, bool], tuple[float, Method]] = {}

    def method(self, sampling: Sampling, text_length: int, repeatable: bool) -> Method:
        key = sampling, repeatable or self._tree != "adaptive"
        known = self._known.measured(sampling) if key[1] else self._known.now(sampling)
        positions, method = self._methods.get(key, (0.0, None))
        if method is None or known.positions > NEWS * positions:
            method = self._build(known, sampling)
            self._methods[key] = known.positions, method
        return method

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        if self._tree == "adaptive":
            self._known.learn(scored, accepted_path)

    def passed(self, method: Method, sampling: Sampling, facts: PassFacts) -> None:
        pass

    def _build(self, known: Acceptance, sampling: Sampling) -> Method:
        size, depth = self._plan.tree_size, self._plan.tree_depth
        if self._tree == "adaptive":
            return adaptive_method(self._draft, known, sampling, size, depth, self._rule)
        return static_method(self._tree, self._draft, known.falling(), size, depth, self._rule)
