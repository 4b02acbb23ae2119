"""The pair of models that is compared on, loaded once for every tree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from comparison.cells import METHODS, MOST_DEPTH, Cell, Setting
from comparison.measure import Steps
from offload_runtime.generation.decode import Step
from offload_runtime.generation.loading import LoadedModels, Progress, load_models
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare


@dataclass(frozen=True)
class Pair:
    """options: what to load and where it may lie. prompts: token ids."""

    options: Options
    prompts: list[list[int]]
    reply_tokens: int

    def context_length(self, size: int) -> int:
        """Tokens of the longest prompt, its reply, and a pass that goes on beyond that."""
        return max(map(len, self.prompts)) + self.reply_tokens + max(MOST_DEPTH + 1, size)

    @contextmanager
    def runtime(self, method: str, size: int, depth: int, progress: Progress | None = None) -> Iterator[OffloadRuntime]:
        """The pair, loaded for a method with trees of this size and depth; size 1 leaves both to the planner.

        Raises an OffloadError.
        """
        options, chosen = self.options, METHODS[method]
        draft = options.draft if chosen.tree != "none" and options.draft is not None else "none"
        with OffloadRuntime.from_pretrained(
            options.model,
            draft,
            device=options.device,
            device_memory=options.device_memory,
            host_memory=options.host_memory,
            dtype=options.dtype,
            tree=chosen.tree,
            tree_size=size if size > 1 else "auto",
            tree_depth=depth or "auto",
            context_length=options.context_length or self.context_length(size),
            verification=chosen.verification,
            io=options.io,
            progress=progress,
        ) as runtime:
            yield runtime

    @contextmanager
    def models(self, size: int, depth: int) -> Iterator[LoadedModels]:
        """Both models, with room for trees of this size and depth. Raises an OffloadError."""
        context_length = self.options.context_length or self.context_length(size)
        options = replace(self.options, tree="sequoia", tree_size=size, tree_depth=depth, context_length=context_length)
        loaded = load_models(prepare(options), None)
        try:
            yield loaded
        finally:
            loaded.close()

    def steps(self, runtime: OffloadRuntime, setting: Setting, seeded: bool = True) -> Steps:
        """Replies of `runtime` under a sampling; unless `seeded` with seeds of their own.

        A seed makes a reply repeatable, so it fixes what the runtime would otherwise choose by measured times.
        """

        def reply(prompt: int, seed: int) -> Iterator[Step]:
            runtime.forget()  # what a prompt shares with the last one must not make its first pass shorter
            return runtime.stream(
                self.prompts[prompt],
                temperature=setting.temperature,
                top_p=setting.top_p,
                top_k=0,  # nothing else shapes the laws, whatever the model's generation config says
                min_p=0,
                repetition_penalty=1,
                seed=seed if seeded else None,
            )

        return reply


def load_key(cell: Cell) -> tuple[str, int, int]:
    """Cells with the same key run on the same loaded pair."""
    return cell.method, cell.size, cell.depth
