"""The pair of models that is compared on: loaded for every tree, and how often its draft is accepted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comparison.cells import METHODS, MOST_DEPTH, Cell, named
from comparison.measure import Steps
from loaders.hub.names import directory_name
from offload_runtime.generation.decode import Step
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.loading.models import LoadedModels, load_models
from offload_runtime.measure_acceptance.measure import Workload, measure
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.speculation.acceptance_store import (
    ACCEPTANCE_FILE,
    Measurement,
    PairAcceptance,
    Setting,
    load,
    write,
)
from sequoia_tree.acceptance.acceptance import Acceptance


@dataclass(frozen=True)
class Pair:
    """options: what to load and where it may lie. prompts: token ids."""

    options: Options
    prompts: list[list[int]]
    reply_tokens: int

    def prepare(self, size: int, **options: Any) -> Preparation:
        """A plan with room for the longest prompt, its reply, and a pass over a tree that goes on beyond that."""
        room = max(map(len, self.prompts)) + self.reply_tokens + max(MOST_DEPTH + 1, size)
        return prepare(replace(self.options, context_length=self.options.context_length or room, **options))

    def runtime(self, method: str, size: int, depth: int) -> OffloadRuntime:
        """The pair, loaded for a method with trees of this size and depth. Raises an OffloadError."""
        chosen = METHODS[method]
        draft = None if chosen.tree == "none" else self.options.draft
        limits = {"tree_size": size, "tree_depth": depth} if size > 1 else {}
        how = {"tree": chosen.tree, "verification": chosen.verification, "draft": draft}
        return OffloadRuntime(self.prepare(size, **how, **limits))

    def models(self, size: int, depth: int) -> "closing[LoadedModels]":
        """Both models, with room for trees of this size and depth. Raises an OffloadError."""
        return closing(load_models(self.prepare(size, tree="sequoia", tree_size=size, tree_depth=depth), None))

    def steps(self, runtime: OffloadRuntime, setting: Setting, seeded: bool = True) -> Steps:
        """Replies of `runtime` under a sampling; unless `seeded` with seeds of their own.

        A seed makes a reply repeatable, so it fixes what the runtime would otherwise choose by measured times. Nothing
        else shapes the distributions, whatever the model's generation config says.
        """

        def reply(prompt: int, seed: int) -> Iterator[Step]:
            runtime.forget()  # what a prompt shares with the last one must not make its first pass shorter
            return runtime.stream(self.prompts[prompt], **vars(setting), seed=seed if seeded else None)

        return reply

    def acceptance(
        self, settings: Sequence[Setting], contexts: int, seed: int, note: Callable[[str], None]
    ) -> dict[Setting, Acceptance]:
        """Of every setting what was measured of the pair before; where nothing was, it is measured and not kept."""
        assert isinstance(self.options.draft, Path)
        known = load(self.options.model, self.options.draft)
        found = known.measurements if known else {}
        if missing := [setting for setting in settings if setting not in found]:
            note(f"measuring acceptance at {contexts} positions of each of: {'; '.join(map(named, missing))}")
            found = {**found, **self._measured(missing, contexts, seed)}
        return {setting: found[setting].acceptance for setting in settings}

    def keep_acceptance(self, settings: Sequence[Setting], contexts: int, seed: int) -> None:
        """Measure it and write it beside the draft's weights."""
        model, draft = self.options.model, self.options.draft
        assert isinstance(draft, Path)
        measured = self._measured(settings, contexts, seed)
        write(draft / ACCEPTANCE_FILE, PairAcceptance(directory_name(model), draft.name, measured), model)

    def _measured(self, settings: Sequence[Setting], contexts: int, seed: int) -> dict[Setting, Measurement]:
        work = Workload(self.prompts, self.reply_tokens, contexts, seed)
        measured = measure(self.prepare(2), work, settings, _silent, _silent)
        return {one.setting: one.measurement for one in measured}


def _silent(*progress: object) -> None:
    """Says nothing."""


def load_key(cell: Cell) -> tuple[str, int, int]:
    """Cells with the same key run on the same loaded pair."""
    return cell.method, cell.size, cell.depth
