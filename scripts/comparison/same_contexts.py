"""All methods at the same contexts: those in which the passes of one of them, the driver, begin.

Each drafts its tree under the same text and the target scores it. What counts is the yield that its rule expects of the
tree, which is far less noisy than an accepted path's; the driver's accepted path alone is kept. For the driver, the
mean is that of its tokens per pass; for another method it is an average over contexts in which its own passes need not
begin.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import torch
from toolkit.output import Note

from comparison.cells import METHODS, MOST_DEPTH, Cell, CountedReply, Measured, named
from offload_runtime.errors import UsageError
from offload_runtime.generation.decode import cut
from offload_runtime.generation.defaults import model_end_tokens
from offload_runtime.loading.models import LoadedModels, load_models
from offload_runtime.measure_acceptance.measure import Workload, measure
from offload_runtime.model.model import Model
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.speculation.acceptance_store import Setting, load
from offload_runtime.speculation.automatic_tree import automatic_method
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.methods import Method, adaptive_method, static_method
from offload_runtime.speculation.target import Target
from offload_runtime.speculation.verification import Scored, verify
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.drafting.end_tokens import up_to_end
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.expectation import expected_yield
from sequoia_tree.verification.verify import AcceptedPath

Generators = Mapping[str, torch.Generator]


@dataclass(frozen=True)
class Pass:
    """yields: tokens that each method adds to the text, the bonus token included. token_ids: those of the driver.

    ended: whether the text ended with an end token.
    """

    yields: dict[str, float]
    token_ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Pair:
    """A target and its draft, and what they write: `driver` replies of `reply_tokens` tokens to prompts (token ids)."""

    options: Options
    prompts: list[list[int]]
    driver: str
    reply_tokens: int
    seed: int = 0

    def prepare(self, size: int, **options: Any) -> Preparation:
        """A plan with room for the longest prompt, its reply, and a pass over a tree that goes on beyond that."""
        room = max(map(len, self.prompts)) + self.reply_tokens + max(MOST_DEPTH + 1, size)
        return prepare(replace(self.options, context_length=self.options.context_length or room, **options))

    def models(self, size: int, depth: int) -> "closing[LoadedModels]":
        """Both models, with room for trees of this size and depth. Raises an OffloadError."""
        depth = min(depth, size - 1)
        return closing(load_models(self.prepare(size, tree="sequoia", tree_size=size, tree_depth=depth), None))

    def acceptance(self, settings: Sequence[Setting], contexts: int, note: Note) -> dict[Setting, Acceptance]:
        """Of every setting what was measured of the pair before; where nothing was, it is measured and not kept."""
        assert isinstance(self.options.draft, Path)
        known = load(self.options.model, self.options.draft)
        found = dict(known.measurements) if known else {}
        if missing := [setting for setting in settings if setting not in found]:
            note(f"measuring acceptance at {contexts} positions of each of: {'; '.join(map(named, missing))}")
            work = Workload(self.prompts, self.reply_tokens, contexts, self.seed)
            measured = measure(self.prepare(2), work, missing, lambda *_: None, lambda _: None)
            found |= {one.setting: one.measurement for one in measured}
        return {setting: found[setting].acceptance for setting in settings}


@dataclass(frozen=True)
class Enough:
    """When a cell has been measured: after so many contexts and replies, and only those `near_end` tokens before the
    end of a text that ends, if it is given."""

    contexts: int
    replies: int
    near_end: int | None = None

    def of(self, replies: Sequence[CountedReply], asked: int, pair: Pair, setting: Setting) -> bool:
        """Greedy replies never differ, so a prompt is answered once. asked: replies, those that did not count too."""
        if setting.temperature == 0 and asked >= len(pair.prompts):
            return True
        return sum(reply.contexts for reply in replies) >= self.contexts and asked >= self.replies


def measure_cells(
    pair: Pair, tables: Mapping[Setting, Acceptance], depth: int, enough: Enough, wanted: Sequence[Cell]
) -> Iterator[Measured]:
    """The cells, those of one size and setting together. Raises an OffloadError."""
    for size, same_size in groupby(sorted(wanted, key=lambda cell: cell.size), key=lambda cell: cell.size):
        cells = list(same_size)
        with pair.models(size, depth) as models:
            if max(map(len, pair.prompts)) >= models.plan.context_length:
                raise UsageError(f"the context holds {models.plan.context_length} tokens, fewer than a prompt has")
            for setting in dict.fromkeys(cell.setting for cell in cells):
                names = [cell.method for cell in cells if cell.setting == setting]
                side_by_side = SideBySide.of(pair, models, tables[setting], setting, names)
                for name, replies in _measure(side_by_side, pair, enough, setting, names).items():
                    yield Measured(Cell(name, size, setting), tuple(replies))


def _measure(
    side_by_side: "SideBySide", pair: Pair, enough: Enough, setting: Setting, names: Sequence[str]
) -> dict[str, list[CountedReply]]:
    """Replies to the prompts in turn, seeded one after the other, until there are enough contexts."""
    replies: dict[str, list[CountedReply]] = {name: [] for name in names}
    first = replies[names[0]]
    for number in count():
        if not first and number == len(pair.prompts):
            raise UsageError(f"--near-end {enough.near_end}: no text ended within {pair.reply_tokens} tokens")
        if enough.of(first, number, pair, setting):
            break
        prompt, seed = number % len(pair.prompts), pair.seed + number
        passes = up_to(pair.reply_tokens, side_by_side.passes(pair.prompts[prompt], seed))
        passes = passes if enough.near_end is None else before_end(passes, enough.near_end)
        for name, counted in replies.items() if passes else ():
            counted.append(CountedReply(prompt, seed, sum(made.yields[name] for made in passes), len(passes)))
    return replies


def up_to(enough: int, passes: Iterator[Pass]) -> list[Pass]:
    """Passes up to the one that brings the reply to `enough` tokens.

    That one counts whole (Wald's identity: then the mean over passes is not biased by where replies end).
    """
    tokens, made = 0, list[Pass]()
    while tokens < enough and (one := next(passes, None)) is not None:
        made.append(one)
        tokens += len(one.token_ids)
    return made


def before_end(passes: Sequence[Pass], most: int) -> list[Pass]:
    """The last passes, which add at most `most` tokens in all, of a reply that ended with an end token; else none."""
    left, near = most, list[Pass]()
    for made in reversed(passes if passes[-1].ended else ()):
        left -= len(made.token_ids)
        if left < 0:
            break
        near.append(made)
    return near[::-1]


@dataclass(frozen=True)
class SideBySide:
    """A loaded pair, and methods by name: those with the same tree one after the other, the driver last."""

    target: Target
    draft: Draft
    methods: Mapping[str, Method]
    sampling: Sampling
    end_token_ids: frozenset[int]
    context_length: int

    @classmethod
    def of(
        cls, pair: Pair, models: LoadedModels, acceptance: Acceptance, setting: Setting, names: Iterable[str]
    ) -> "SideBySide":
        """Methods under one sampling; the driver takes part whether it is one of them or not."""
        assert models.draft is not None
        how, size, depth = Sampling(**vars(setting)), models.plan.tree_size, models.plan.tree_depth
        names = sorted({pair.driver, *names}, key=lambda name: _order(name, pair.driver))
        methods = {name: build(name, models.draft, acceptance, how, size, depth) for name in names}
        ends = model_end_tokens(pair.options.model, models.target.model.config.eos_token_id)
        return cls(models.target, models.draft, methods, how, ends, models.plan.context_length)

    def passes(self, prompt: Sequence[int], seed: int) -> Iterator[Pass]:
        """Those of the reply that the driver writes with this seed, until it ends or the context is full."""
        text, finish_reason = list(prompt), None
        generators = self._generators(seed)
        for model in self._models():
            model.cache.truncate(0)
        while finish_reason is None:
            yields, accepted = self._pass(text, generators)
            tokens, finish_reason = cut(accepted, self.end_token_ids, self.context_length - len(text))
            text += tokens
            yield Pass(yields, tokens, finish_reason == "stop")

    def _generators(self, seed: int) -> Generators:
        """By method. The driver's is the runtime's for this seed; the others know nothing of what it wrote."""
        device, driver = self.target.model.device, list(self.methods)[-1]
        seeds = {name: random.Random(f"{name} {seed}").getrandbits(62) for name in self.methods} | {driver: seed}
        return {name: torch.Generator(device).manual_seed(number) for name, number in seeds.items()}

    @torch.inference_mode()
    def _pass(self, text: list[int], generators: Generators) -> tuple[dict[str, float], list[int]]:
        """What each method yields under `text`, and the tokens of the driver's accepted path, which the caches keep."""
        yields = {}
        for _, names in groupby(self.methods, _tree):
            scored, found = self._try([*names], text, generators)
            yields.update({name: self._yield(scored, self.methods[name].rule, path) for name, path in found.items()})
        accepted_path, drawn = list(found.values())[-1], scored.drawn  # the driver comes last
        self.target.commit(accepted_path.path)
        self.draft.commit(drawn.draft_columns(accepted_path.path))
        return yields, [*(drawn.tokens[node] for node in accepted_path.path), accepted_path.bonus]

    def _try(self, names: list[str], text: list[int], generators: Generators) -> tuple[Scored, dict[str, AcceptedPath]]:
        """One tree of methods that share it, after the last one is rolled back, and the accepted path of each."""
        for model in self._models():
            model.cache.rollback()
        drawn = self.methods[names[-1]].grow(text, self.sampling, generators[names[-1]], self.end_token_ids)
        scored = Scored.of(drawn, self.target.score(text, drawn), text, self.sampling)
        return scored, {name: verify(scored, self.methods[name].rule, generators[name]) for name in names}

    def _yield(self, scored: Scored, rule: str, accepted_path: AcceptedPath) -> float:
        """Expected tokens up to the text's end, of a rule that has an expectation, else those of its accepted path.

        Nodes that the draft did not draw are matched once the rule has ended: of those the accepted path's count.
        """
        drawn, path = scored.drawn, accepted_path.path
        kept = len(up_to_end([*(drawn.tokens[node] for node in path), accepted_path.bonus], self.end_token_ids))
        if scored.sampling.temperature == 0 or rule == "match":
            return kept
        tokens = torch.tensor(drawn.tokens[: drawn.drawn], device=scored.logits.device)
        by_tests = sum(node < drawn.drawn for node in path)
        matched = kept - (by_tests + 1) if by_tests < len(path) else 0
        return expected_yield(rule, drawn.drawn_part, tokens, scored.distributions, self.end_token_ids) + matched

    def _models(self) -> tuple[Model, Model]:
        return self.target.model, self.draft.model


def _tree(name: str) -> tuple[str, bool]:
    """Methods of the same tree differ in the rule alone, so one draft tree serves them all."""
    return METHODS[name].tree, METHODS[name].automatic


def _order(name: str, driver: str) -> tuple[bool, tuple[str, bool], bool, str]:
    return _tree(name) == _tree(driver), _tree(name), name == driver, name


def build(name: str, draft: Draft, acceptance: Acceptance, how: Sampling, size: int, depth: int) -> Method:
    """As the runtime builds it: by itself, or where it chooses trees of its own."""
    kind = METHODS[name]
    if kind.tree == "adaptive":
        return adaptive_method(draft, acceptance, how, size, depth, kind.verification)
    if kind.automatic:
        return automatic_method("static", draft, acceptance, how, size, depth, kind.verification)
    return static_method(kind.tree, draft, acceptance.falling(), size, depth, kind.verification)
