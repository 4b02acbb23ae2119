"""Chooses the tree that each step drafts."""

from dataclasses import dataclass

from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.methods import PLAIN, Method, adaptive_method, static_method
from offload_runtime.speculation.verification import Scored
from scheduler.plan.plan import Plan
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.shaping.by_sampling import BySampling
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.verify import AcceptedPath

_MOST_PAST = 16
NEWS = 1.25  # a method is rebuilt once this many times as many positions are known


@dataclass(frozen=True)
class TextFacts:
    """What a finished pass was for one text: its tokens before the reply is cut off, and the nodes of its tree.

    fresh_text: tokens of the text that the pass read before the root.
    """

    method: Method
    sampling: Sampling
    tokens: int
    nodes: int
    fresh_text: int


@dataclass(frozen=True)
class PassFacts:
    """A finished pass over the trees of `texts`, and its seconds.

    read: tokens of other texts, which it only read. sharing: texts that had rows in it.
    """

    texts: tuple[TextFacts, ...]
    draft_seconds: float
    target_seconds: float
    read: int = 0
    sharing: int = 1

    @property
    def rows(self) -> int:
        """Query tokens of the pass."""
        return self.read + sum(text.nodes + text.fresh_text for text in self.texts)

    @property
    def is_fresh(self) -> bool:
        """Whether it also read text, beside the roots."""
        return self.read > 0 or any(text.fresh_text for text in self.texts)


@dataclass(frozen=True)
class Situation:
    """What a method is chosen for: one of the texts of a pass.

    text_length: its tokens. repeatable: use only what was known when the models were loaded, so that a seed gives the
    same text again. sharing: texts that have rows in the pass.
    """

    sampling: Sampling
    text_length: int
    repeatable: bool = False
    sharing: int = 1


class TreePolicy:
    """Chooses the method of every step, and learns from it. This one decodes plainly: it never drafts a tree."""

    def method(self, situation: Situation) -> Method:
        """How to draft and verify the next step."""
        return PLAIN

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        """Record what a step accepted."""

    def passed(self, facts: PassFacts) -> None:
        """Record what a pass cost."""


class FixedTree(TreePolicy):
    """One kind of tree of the planned size; adaptive trees update their priorities as more acceptance is measured."""

    def __init__(self, draft: Draft, plan: Plan, tree: str, rule: str, known: LearnedAcceptance):
        self._draft, self._plan, self._tree, self._rule, self._known = draft, plan, tree, rule, known
        self._methods: BySampling[tuple[float, Method]] = BySampling(most_kept(plan))

    def method(self, situation: Situation) -> Method:
        sampling, measured_only = situation.sampling, situation.repeatable or self._tree != "adaptive"
        key = sampling, measured_only, most_nodes(self._plan, situation)
        known = self._known.measured(sampling) if measured_only else self._known.now(sampling)
        kept = self._methods.get(*key)
        if kept is None or known.positions > NEWS * kept[0]:
            kept = self._methods.put((known.positions, self._build(known, sampling, key[2])), *key)
        return kept[1]

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        if self._tree == "adaptive":
            self._known.learn(scored, accepted_path)

    def _build(self, known: Acceptance, sampling: Sampling, size: int) -> Method:
        depth = self._plan.tree_depth
        if self._tree == "adaptive":
            return adaptive_method(self._draft, known, sampling, size, depth, self._rule)
        return static_method(self._tree, self._draft, known.falling(), size, depth, self._rule)


def most_kept(plan: Plan) -> int:
    """Samplings whose trees are kept: of a few past texts, and of all that share a pass.

    Drafting adaptive trees of 768 nodes keeps 1.6 MB on the device for each sampling and text that has used it.
    """
    return _MOST_PAST + 2 * plan.texts


def most_nodes(plan: Plan, situation: Situation) -> int:
    """Nodes that the tree of each text may have. What is repeatable must not depend on who shares the pass."""
    texts = plan.texts if situation.repeatable and situation.sampling.temperature else situation.sharing
    return min(plan.tree_size, plan.nodes // texts)
