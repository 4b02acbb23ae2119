"""What a user may fix about a run. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from loaders.checkpoint.local_models import local_model
from loaders.checkpoint.rope_scaling import RopeScaling
from loaders.hub.find import find_model
from loaders.hub.model import HubModel
from loaders.hub.names import hub_name, model_path
from loaders.quantize.recipe import BITS
from offload_runtime.errors import UsageError

DEMO_PAIR = Path(__file__).resolve().parents[1] / "demo_pair"
DEMO_TARGET, DEMO_DRAFT = DEMO_PAIR / "target", DEMO_PAIR / "draft"

# The rules that may verify each kind of tree, its own first: what was drawn in one way needs the test made for it.
_DRAWN = ("top-down", "traversal", "match")
TREE_RULES = {
    "auto": ("traversal", "top-down", "match"),
    "sequoia": _DRAWN,
    "adaptive": ("traversal", "top-down", "match"),
    "chain": _DRAWN,
    "chains": _DRAWN,
    "specinfer": ("multi-round", "match"),
    "topk": ("match",),
    "none": ("match",),
}
TREES = tuple(TREE_RULES)
RULES = ("auto", "top-down", "traversal", "match", "multi-round")
DTYPES = ("auto", "float32", "bfloat16", "float16")
IOMode = Literal["auto", "direct", "buffered"]
IO_MODES = get_args(IOMode)
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Options:
    """What a user may fix about a run; None and "auto" leave it to the planner. Sizes are bytes or text like "20GiB".

    model, draft: directories, GGUF files, or names on the hub until `located` has put the paths in its cache there;
    sources says then what these lack. draft: None for none; "auto" for a known one that is on this machine, or else
    what the text said before. share_layers: the files hold the target's first few layers only, and the others repeat
    them in turn. gpu: plan for this card (of `scheduler.machine.data_sheets`) in place of the machine's own, with
    `host_memory` beside it, all free. offline: never use the network. quantize: pack the target's weights as "int8" or
    "int4", once; they are kept in `quantized_directory`, or in the user's cache. chat_template: a file with
    another one than the model's. template_arguments: variables of the chat template. adapter: a directory, merged into
    the target.
    rope_scaling: in place of what the config says; the draft gets it too where it was made for fewer positions than the
    target then has.
    """

    model: Path
    draft: Path | Literal["auto"] | None = None
    device: str = "auto"
    device_memory: int | str | None = None
    host_memory: int | str | None = None
    dtype: str = "auto"
    tree: str = "auto"
    verification: str = "auto"
    tree_size: int | str | None = None
    tree_depth: int | str | None = None
    context_length: int | None = None
    io: IOMode = "auto"
    share_layers: bool = False
    gpu: str | None = None
    offline: bool = False
    sources: tuple[HubModel, ...] = ()
    quantize: str | None = None
    quantized_directory: Path | None = None
    chat_template: Path | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and (self.quantize or self.share_layers):
            raise UsageError(
                f"{self.adapter}: an adapter is merged into weights as they are read, so not with --quantize: merge it "
                "with PEFT first, and pack the result"
            )
        if self.quantize not in (None, *BITS):
            raise UsageError(f"quantize {self.quantize!r} is none of {', '.join(BITS)}")
        if self.quantized_directory is not None and self.quantize is None:
            raise UsageError(
                f"{self.quantized_directory} is for packed weights: say which with --quantize int4 or int8"
            )
        _check_template_arguments(self.template_arguments)
        for name, choices in (("tree", TREES), ("verification", RULES), ("dtype", DTYPES), ("io", IO_MODES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is none of {', '.join(choices)}")
        if self.verification not in ("auto", *TREE_RULES[self.tree]):
            raise UsageError(
                f"{self.verification} cannot verify {self.tree} trees exactly; {', '.join(TREE_RULES[self.tree])} can"
            )

    @property
    def rule(self) -> str:
        """The rule that trees are verified by above temperature 0."""
        return TREE_RULES[self.tree][0] if self.verification == "auto" else self.verification


def _check_template_arguments(arguments: Mapping[str, Any]) -> None:
    if taken := {"messages", "add_generation_prompt"} & set(arguments):
        raise UsageError(f"the template argument {min(taken)!r} is given by the conversation")
    try:
        json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise UsageError(f"template arguments are values that JSON can hold: {error}") from error


def resolve_model(model: str | Path) -> Path:
    """A directory, a hub's name as it is, or a GGUF file; ModelFilesError for a path that means none of these."""
    path = model_path(model)
    return path if hub_name(path) else local_model(path)


def resolve_draft(model: Path, draft: str | Path | None) -> Path | Literal["auto"] | None:
    """The draft's directory or name; "auto" is that of the bundled pair, and left to `prepare` for other models."""
    if draft == AUTO:
        return DEMO_DRAFT if model.resolve() == DEMO_TARGET.resolve() else AUTO
    return None if draft in (None, "none") else resolve_model(draft)


def located(options: Options) -> Options:
    """The options with paths in place of hub names, and what the hub says of these. Raises ModelFilesError."""
    draft = options.draft if isinstance(options.draft, Path) and options.tree != "none" else None
    names = {path: name for path in (options.model, draft) if path is not None and (name := hub_name(path))}
    asked_by = {path: "--model" if path == options.model else "--draft" for path in names}
    found = {path: find_model(name, options.offline, asked_by[path]) for path, name in names.items()}
    where: dict[Path, Path] = {path: source.path for path, source in found.items()}
    return replace(
        options,
        model=where.get(options.model, options.model),
        draft=where.get(draft, draft) if draft else options.draft,
        sources=(*options.sources, *found.values()),
    )
