"""The options of a run. Imports no torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from loaders.adapters.locate import with_adapter
from loaders.checkpoint.local_models import local_model
from loaders.checkpoint.low_bit_copy import COPIES
from loaders.checkpoint.rope_scaling import RopeScaling
from loaders.formats.lossless import METHOD as LOSSLESS
from loaders.hub.find import find_model
from loaders.hub.model import HubModel
from loaders.hub.names import hub_name, model_path
from loaders.quantize import lossless_recipe
from loaders.quantize.recipe import BITS
from loaders.sizes import parse_size
from offload_runtime.errors import UsageError
from offload_runtime.options.fields import described, option, values_of
from offload_runtime.options.readers import (
    ONLY_8_BITS,
    count_or_auto,
    device,
    row_bits,
    scaled_rotation,
    size,
    template_argument,
    texts_at_once,
    whole_number,
)
from scheduler.plan.request import KV_PLACES

DEMO_PAIR = Path(__file__).resolve().parents[1] / "demo_pair"
DEMO_TARGET, DEMO_DRAFT = DEMO_PAIR / "target", DEMO_PAIR / "draft"
MTP: Literal["mtp"] = "mtp"
Draft = Path | str | None  # "auto", "mtp", a name in COPIES
"""As `Options.draft` is."""

# The rules that may verify each kind of tree, the default first: a rule must match how the tokens were drawn.
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
PLAIN_LINK, PACKED_LINK, AUTO_LINK = LINKS = ("plain", "packed", "auto")


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, as the user gives them. None and "auto" leave a value to the planner.

    The flags of the command line and the arguments of `OffloadRuntime.from_pretrained` follow from these fields.
    """

    model: str | Path = field(
        metadata=described(
            "directory of the model, a GGUF file, or a name on the Hugging Face hub: org/name or org/name@revision, "
            "and org/name:Q4_K_M for one of its GGUF files",
            "MODEL",
            flags=("--model", "-m"),
            unsaid="a bundled demonstration",
        )
    )
    draft: str | Path | None = option(
        "a small model with the same tokens, in the same way (org/name:Q8_0); mtp: the head for multi-token prediction "
        "in the model's own files; self: a low-bit copy of the model itself (self:3, self:4, self:5 say of how many "
        "bits); none: plain decoding; auto: that head, such a copy or a known draft that is in the hub's cache, "
        "whichever is faster, else n-gram lookup in the text",
        "MODEL",
        default="auto",
        flags=("--draft", "-d"),
    )
    device: str = option(
        "where to compute: auto, cpu, cuda, or cuda:1 for the second GPU", "DEVICE", device, default="auto"
    )
    device_memory: int | str | None = option("use at most this much of the device's memory: 10GiB", "SIZE", size)
    host_memory: int | str | None = option("use at most this much of the host's memory: 32GiB", "SIZE", size)
    dtype: str = option("type to compute in", choices=DTYPES, default="auto")
    _: KW_ONLY
    adapter: str | Path | None = option(
        "a LoRA adapter, merged into the model while it is read; none: leave out one that lies beside the model", "DIR"
    )
    quantize: str | None = option(
        "pack the model's weights to 8 or 4 bits, once: the first start writes them to disk, later ones find them",
        choices=tuple(BITS),
    )
    link: str = option(
        "how 16-bit weights cross the link: plain; packed without loss, in 0.7 of their bytes, which the first start "
        "writes to disk; auto: packed if passes are predicted to be faster then, restoring the bits included",
        choices=LINKS,
        default=PLAIN_LINK,
    )
    quantized_directory: str | Path | None = option("where packed weights are kept", "DIR", Path, unsaid="the cache")
    calibration: str | Path | None = option(
        "with --quantize: round with a text, so that less is lost (GPTQ): a file like what the model is for, or "
        "bundled, Python's documentation",
        "FILE",
    )
    context_length: int | None = option("most tokens of prompts and replies together", "N", whole_number(1))
    rope_scaling: RopeScaling | str | Mapping[str, Any] | None = option(
        "extend the context: yarn:4, linear:2, dynamic:2; yarn:4:32768 says what the model was made for; none; or "
        "rope_scaling as JSON",
        *("KIND:FACTOR", scaled_rotation),
        unsaid="what the config says",
    )
    tree: str = option(
        "what the draft proposes; auto: what is fastest here; sequoia: the best static tree; adaptive: grown for "
        "each context; none: plain decoding (docs/trees.md has others, for comparisons)",
        "{auto,sequoia,adaptive,none}",
        choices=TREES,
        default="auto",
    )
    verification: str = option(
        "rule that accepts drafts when sampling; all are exact; auto: the tree's own", choices=RULES, default="auto"
    )
    tree_size: int | str | None = option("most tokens in a tree", "N", count_or_auto, default="auto")
    tree_depth: int | str | None = option("most levels of a tree", "N", count_or_auto, default="auto")
    parallel: int | str | None = option(
        "texts that are written at once: they share each pass over the weights, and each takes memory for its context; "
        "auto: as many as pay",
        *("N", texts_at_once),
        default=1,
        unsaid="1; auto for jobs and servers",
    )
    kv: str = option(
        "where the model's keys and values lie: on the device; in host memory, from where they travel with each layer; "
        "auto: on the device, unless there is no room for them or passes take less with them in host memory",
        choices=(AUTO, *KV_PLACES),
        default=AUTO,
    )
    kv_bits: int | None = option(
        "keep the model's keys and values in 8 bits, in about half the memory: the text is then that of a slightly "
        "different model",
        *("8", row_bits),
        unsaid="those of the computation",
    )
    io: IOMode = option("read weights past the page cache, or through it", choices=IO_MODES, group=None, default="auto")
    offline: bool = option("never use the network: what the cache has is used", group="downloads", default=False)
    chat_template: str | Path | None = option("a Jinja template in place of the model's", "FILE", Path, group="prompt")
    template_arguments: Mapping[str, Any] | None = option(
        "a variable of the chat template: enable_thinking=false, reasoning_effort=high; may be repeated",
        *("KEY=JSON", template_argument),
        flags=("--template-arg",),
        group="prompt",
        repeats=True,
    )
    prompt_cache: str | Path | None = option(
        "keep what the model has read in this directory, so that later runs need not read it again; it is private to "
        "you, and so is the directory, which is created if it is missing",
        *("DIR", Path),
        group="prompt",
    )
    prompt_cache_size: int | str | None = option(
        "use at most this much of the disk for that: 10GiB",
        *("SIZE", size),
        group="prompt",
        unsaid="a tenth of what is free, at most 16 GiB",
    )
    progress: Callable[[str, int, int], None] | None = field(
        default=None,
        compare=False,
        repr=False,
        metadata=described("called while weights are read: with the stage, bytes done, and bytes in all", group=None),
    )


@dataclass(frozen=True)
class Options(RunOptions):
    """The user's options as checked paths and values (see `resolved`).

    model, draft: directories, GGUF files, or hub names, which `located` replaces by paths in the hub's cache; sources
    then says which files are missing. draft: None for none; "mtp" for the head in the model's files; "auto" for that or
    a known one on this machine, or else n-gram lookup in the text. adapter: a directory. share_layers: the files hold
    only the target's first few layers, and the others repeat them in turn. rope_scaling: applies to the draft, too, if
    it has fewer positions than the target.
    """

    model: Path
    draft: Draft = None
    _: KW_ONLY
    adapter: Path | None = None
    quantized_directory: Path | None = None
    rope_scaling: RopeScaling | None = None
    chat_template: Path | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    prompt_cache: Path | None = None
    prompt_cache_size: int | None = None
    share_layers: bool = False
    gpu: str | None = option(
        "with --plan: plan for this card instead of what is here (rtx-4090, l40, ...; all are listed where a name "
        "is unknown); --host-memory is then the memory beside it",
        "NAME",
        group="output",
    )
    sources: tuple[HubModel, ...] = ()

    def __post_init__(self) -> None:
        if self.adapter is not None and (self.quantize or self.share_layers):
            raise UsageError(
                f"{self.adapter}: an adapter is merged into weights as they are read, so not with --quantize: merge it "
                "with PEFT first, and pack the result"
            )
        if self.link == PACKED_LINK and (self.quantize or self.adapter or self.share_layers):
            raise UsageError(
                "--link packed packs the weights of a model as they are: not with --quantize or an adapter"
            )
        if self.quantized_directory is not None and self.packed_as is None and self.link != AUTO_LINK:
            raise UsageError(
                f"{self.quantized_directory} is for packed weights: say which with --quantize int4 or int8, or with "
                "--link packed"
            )
        if self.calibration is not None and self.quantize is None:
            raise UsageError(
                f"--calibration {self.calibration} is for packing: say to what with --quantize int4 or int8"
            )
        if self.prompt_cache is None and self.prompt_cache_size is not None:
            raise UsageError("prompt_cache_size is for a prompt cache: say where with --prompt-cache DIR")
        if self.kv_bits not in (None, 8):
            raise UsageError(f"kv_bits {self.kv_bits!r}: {ONLY_8_BITS}")
        check_template_arguments(self.template_arguments)
        for known in fields(RunOptions):
            value, choices = getattr(self, known.name), known.metadata["option"].choices
            if choices and value not in (known.default, *choices):
                raise UsageError(f"{known.name} {value!r} is none of {', '.join(choices)}")
        if self.verification not in ("auto", *TREE_RULES[self.tree]):
            raise UsageError(
                f"{self.verification} cannot verify {self.tree} trees exactly; {', '.join(TREE_RULES[self.tree])} can"
            )

    @property
    def packed_as(self) -> str | None:
        """What the target's weights are packed to before they are loaded; None where they are used as they are."""
        return LOSSLESS if self.link == PACKED_LINK else self.quantize

    @property
    def code_bits(self) -> int:
        """Of the codes of weights that are packed without loss: where these draft for themselves, those of the copy."""
        return COPIES[str(self.draft)] if self.draft in COPIES else lossless_recipe.BITS

    @property
    def rule(self) -> str:
        """The rule that verifies trees above temperature 0."""
        return TREE_RULES[self.tree][0] if self.verification == "auto" else self.verification


def check_template_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for variables that a conversation itself gives, or that JSON cannot hold."""
    if taken := {"messages", "add_generation_prompt"} & set(arguments):
        raise UsageError(f"the template argument {min(taken)!r} is given by the conversation")
    try:
        json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise UsageError(f"template arguments are values that JSON can hold: {error}") from error


def resolve_model(model: str | Path) -> Path:
    """A directory, a GGUF file, or a hub name, unchanged. Raises ModelFilesError for other paths."""
    path = model_path(model)
    return path if hub_name(path) else local_model(path)


def resolve_draft(model: Path, draft: str | Path | None) -> Draft:
    """The draft's directory or name; "auto" gives the bundled pair's, and is left to `prepare` for other models."""
    if draft == MTP:
        return MTP
    if draft in COPIES:
        return str(draft)
    if str(draft).startswith("self:"):
        raise UsageError(f"--draft {draft}: a copy of the model has 3, 4 or 5 bits a weight: {', '.join(COPIES)}")
    if draft == AUTO:
        return DEMO_DRAFT if model.resolve() == DEMO_TARGET.resolve() else AUTO
    return None if draft in (None, "none") else resolve_model(draft)


def resolved(given: RunOptions) -> Options:
    """Check the user's options and look up models on disk. Raises UsageError and ModelFilesError."""
    model, adapter = with_adapter(resolve_model(given.model), given.adapter)
    values = {
        **values_of(RunOptions, given),
        **{"model": model, "draft": resolve_draft(model, given.draft), "adapter": adapter},
        "quantized_directory": None if given.quantized_directory is None else Path(given.quantized_directory),
        "chat_template": None if given.chat_template is None else Path(given.chat_template),
        "template_arguments": dict(given.template_arguments or {}),
        "prompt_cache": None if given.prompt_cache is None else Path(given.prompt_cache),
        "prompt_cache_size": _size(given.prompt_cache_size),
        "rope_scaling": _rope_scaling(given.rope_scaling),
    }
    return Options(**values)


def _size(value: int | str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise UsageError(f"prompt_cache_size: {error}") from error


def _rope_scaling(value: RopeScaling | str | Mapping[str, Any] | None) -> RopeScaling | None:
    try:
        return value if value is None or isinstance(value, RopeScaling) else RopeScaling.parse(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"rope_scaling: {error}") from error


def located(options: Options) -> Options:
    """The options with paths instead of hub names, and the hub's data on these. Raises ModelFilesError."""
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
