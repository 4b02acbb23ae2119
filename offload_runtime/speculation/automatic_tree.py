"""Chooses the tree with the fewest seconds per token, by measured pass and draft times and the pair's acceptance."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.learned_acceptance import MOST_LEARNT, LearnedAcceptance
from offload_runtime.speculation.methods import PLAIN, Method, adaptive_method, static_method
from offload_runtime.speculation.target import Target
from offload_runtime.speculation.tree_policy import (
    NEWS,
    PassFacts,
    Situation,
    TextFacts,
    TreePolicy,
    most_kept,
    most_nodes,
)
from offload_runtime.speculation.verification import Scored
from scheduler.plan.plan import Plan
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.choice.choose import Choice, Chooser, Correction, Yield, damped
from sequoia_tree.choice.contest import Contest, Pace
from sequoia_tree.choice.pass_times import PassTimes
from sequoia_tree.shaping.by_sampling import BySampling
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.verify import AcceptedPath

# Positions that must be known before adaptive trees are used; until then the static tree is better.
LEAST_POSITIONS = 300.0
# Assumed gain in accepted tokens of an adaptive tree over the static tree of the same size, until it is measured. With
# the bundled pair and with rounded copies of its target, it was at least 1.13 at temperature 0, and 0.86 to 1.17 above
# (docs/comparison).
_GREEDY_GAIN, _SAMPLING_GAIN = 1.15, 1.03
_CALIBRATION_SECONDS = 0.25  # once this is spent, no further size is timed


def _corrections() -> dict[str, Correction]:
    return {"static": Correction(), "adaptive": Correction()}


@dataclass
class _Setting:
    """The state of one sampling, for passes that `sharing` texts share. corrections: common to all numbers of texts."""

    chooser: Chooser
    corrections: dict[str, Correction]
    sharing: int
    contest: Contest = field(default_factory=Contest)
    positions: float = -1.0  # known when `vector` was computed
    vector: tuple[float, ...] = ()
    choice: Choice | None = None
    tree: Method = PLAIN  # the chosen tree
    plain: Method = PLAIN
    drafted: bool = True  # whether the last step drafted, so that the draft has read the text


class AutomaticTree(TreePolicy):
    """Chooses among plain decoding, static trees and adaptive trees, and their numbers of nodes and levels.

    Where texts share passes, the trees of each get smaller, so that a pass takes the fewest seconds per token in all.
    max_depth: most levels. rule: for trees above temperature 0.
    """

    def __init__(self, draft: Draft, target: Target, plan: Plan, max_depth: int, rule: str, known: LearnedAcceptance):
        self._draft, self._target, self._plan, self._rule, self._known = draft, target, plan, rule, known
        self._max_depth = max_depth
        # Where weights stream, passes are long enough to be predicted well, and too long to be spent on trials.
        self._streams = plan.slots > 0
        self._pass_times, self._level_times = PassTimes(floor=plan.seconds_per_pass or 0.0), PassTimes()
        self._settings: BySampling[_Setting] = BySampling(most_kept(plan))
        self._corrections: BySampling[dict[str, Correction]] = BySampling(MOST_LEARNT)
        self._planned: BySampling[Method] = BySampling(most_kept(plan))

    def method(self, situation: Situation) -> Method:
        if not self._level_times.known:
            self._calibrate()
        times_known = self._pass_times.known or self._plan.seconds_per_pass
        sampling = situation.sampling
        if times_known and not (situation.repeatable and sampling.temperature):
            return self._choose(situation)
        return self._planned.obtain(lambda: self._as_planned(situation), sampling)

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        if method.draft_rows:
            self._known.learn(scored, accepted_path)

    def passed(self, facts: PassFacts) -> None:
        if facts.rows <= self._plan.rows:  # else it took several passes
            self._pass_times.add(facts.rows, facts.target_seconds)
        settings = [self._settings.get(text.sampling, facts.sharing) for text in facts.texts]
        usual = not facts.is_fresh
        for text, setting in zip(facts.texts, settings):
            usual = usual and (not text.method.draft_rows or setting is None or setting.drafted)
        levels = max((len(text.method.draft_rows) for text in facts.texts), default=0)
        if levels and usual:
            rows = sum(sum(text.method.draft_rows) for text in facts.texts)
            self._level_times.add(round(rows / levels), facts.draft_seconds / levels)
        for text, setting in zip(facts.texts, settings):
            if setting is not None:
                self._passed(text, setting, facts, usual)

    def _passed(self, text: TextFacts, setting: _Setting, facts: PassFacts, usual: bool) -> None:
        method, drafts = text.method, bool(text.method.draft_rows)
        if setting.choice is None or (method is not setting.tree and method is not setting.plain):
            return
        seconds, setting.drafted = facts.draft_seconds + facts.target_seconds, drafts
        setting.chooser.passed(seconds)
        if not facts.is_fresh and not self._streams:
            setting.contest.passed(drafts, seconds, text.tokens, usual)
        for name, correction in setting.corrections.items():
            if drafts and name == setting.choice.method:
                drafted = _gain(name, text.sampling) * (setting.choice.uncorrected_tokens - 1)
                correction.add(text.tokens, 1 + drafted)
            else:
                correction.idle()

    def _as_planned(self, situation: Situation) -> Method:
        """A tree of the planned size from what was known at the start; independent of timings and of earlier replies.

        Plain decoding on a CPU that streams nothing: trees seldom pay off there, and timings must not decide.
        """
        if self._plan.device == "cpu" and not self._streams:
            return PLAIN
        sampling = situation.sampling
        known = self._known.measured(sampling)
        kind = "adaptive" if known.positions >= LEAST_POSITIONS else "static"
        return self._method(kind, sampling, known, most_nodes(self._plan, situation), self._plan.tree_depth)

    def _choose(self, situation: Situation) -> Method:
        sampling = situation.sampling
        setting = self._settings.obtain(lambda: self._new_setting(situation), sampling, situation.sharing)
        if setting.chooser.due:
            started = time.perf_counter()
            self._choose_tree(setting, sampling, situation.text_length)
            setting.chooser.took(time.perf_counter() - started)
        if not setting.tree.draft_rows:
            return setting.plain
        return setting.tree if self._streams or setting.contest.drafts() else setting.plain

    def _new_setting(self, situation: Situation) -> _Setting:
        corrections = self._corrections.obtain(_corrections, situation.sampling)
        chooser = Chooser(most_nodes(self._plan, situation), self._max_depth, plain=self._streams)
        return _Setting(chooser, corrections, situation.sharing)

    def _choose_tree(self, setting: _Setting, sampling: Sampling, text_length: int) -> None:
        known = self._known.now(sampling)
        renewed = known.positions > NEWS * setting.positions
        if renewed:
            setting.positions, setting.vector = known.positions, tuple(_vector(known, sampling))
        kinds = ("static", "adaptive") if known.positions >= LEAST_POSITIONS else ("static",)
        gains = {kind: _gain(kind, sampling) for kind in kinds}
        yields = {kind: Yield(setting.vector, gains[kind] * setting.corrections[kind].factor) for kind in kinds}
        before = setting.choice
        passes, levels = (partial(_of_all, t.seconds, setting.sharing) for t in (self._pass_times, self._level_times))
        choice = setting.chooser.current(yields, passes, levels, text_length)
        if renewed or before is None or _tree(choice) != _tree(before):
            setting.tree = self._method(choice.method, sampling, known, choice.size, choice.depth)
        setting.choice = choice
        factor = yields[choice.method].factor if choice.method in yields else 0.0
        tokens = min(1 + factor * (choice.uncorrected_tokens - 1), 1.0 + choice.depth, choice.size)
        setting.tree = self._predicted(setting.tree, choice.size, tokens, setting.contest.tree, setting.sharing)
        setting.plain = self._predicted(PLAIN, 1, 1.0, setting.contest.plain, setting.sharing)

    def _predicted(self, method: Method, nodes: int, tokens: float, pace: Pace, sharing: int) -> Method:
        """The method with the expected tokens and seconds of its next step."""
        levels, rows = len(method.draft_rows), sharing * sum(method.draft_rows)
        drafting = levels * self._level_times.seconds(round(rows / levels)) if levels else 0.0
        seconds = self._pass_times.seconds(sharing * nodes) + drafting
        pace.predict(seconds, tokens)
        return replace(method, predicted_tokens=tokens, predicted_seconds=seconds)

    def _method(self, kind: str, sampling: Sampling, known: Acceptance, size: int, depth: int) -> Method:
        return automatic_method(kind, self._draft, known, sampling, size, depth, self._rule)

    def _calibrate(self) -> None:
        """Time the draft, and a target that does not stream, at a few sizes."""
        largest = max(1, self._plan.tree_size - 1)
        with self._draft.running():
            _time_passes(self._draft.model, largest, self._level_times.add)
        if not self._plan.slots:
            _time_passes(self._target.model, largest, self._pass_times.add)


def _of_all(seconds: Callable[[int], float], sharing: int, rows: int) -> float:
    """Seconds of a pass over `rows` rows of each of several texts."""
    return seconds(sharing * rows)


def automatic_method(
    kind: str, draft: Draft, known: Acceptance, sampling: Sampling, size: int, depth: int, rule: str
) -> Method:
    """The method for a chosen kind: "static", "adaptive", or else plain decoding."""
    if kind == "adaptive":
        return adaptive_method(draft, known, sampling, size, depth, rule)
    if kind == "static":
        return static_method("sequoia", draft, _vector(known, sampling), size, depth, rule)
    return PLAIN


def _gain(kind: str, sampling: Sampling) -> float:
    if kind == "static":
        return 1.0
    return _SAMPLING_GAIN if sampling.temperature else _GREEDY_GAIN


def _vector(known: Acceptance, sampling: Sampling) -> np.ndarray:
    """Acceptance by child number, corrected for the verification rule: see `damped`."""
    return damped(known.falling()) if sampling.temperature else known.falling()


def _tree(choice: Choice) -> tuple[str, int, int]:
    return choice.method, choice.size, choice.depth


def _time_passes(model: Model, largest: int, add: Callable[[int, float], None]) -> None:
    """Time passes over 1, 4, 16, … and `largest` dummy tokens after the cached rows, which stay unchanged."""
    cache, spent = model.cache, 0.0
    for rows in (*(4**k for k in range(8) if 4**k < largest), largest):
        if spent > _CALIBRATION_SECONDS or cache.sequences[0].length + rows > cache.scratch:
            return
        if model.replays:
            _pass_seconds(model, rows)  # captures the graph, outside of what is timed
        times = []
        for _ in range(2):  # the first of a size also allocates memory and chooses kernels
            times.append(_pass_seconds(model, rows))
            if times[-1] > _CALIBRATION_SECONDS:
                break
        spent += sum(times)
        add(rows, min(times))


def _pass_seconds(model: Model, rows: int) -> float:
    started = time.perf_counter()
    tokens = torch.zeros(rows, dtype=torch.int64, device=model.device)
    model.forward(tokens, text_rows(model.cache.sequences[0].length, rows, model.device), rows)[-1, 0].item()
    model.cache.sequences[0].rollback()
    return time.perf_counter() - started
