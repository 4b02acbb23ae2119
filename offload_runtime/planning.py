"""From what the user asks for to a plan, without reading a weight and without importing torch."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from loaders.direct_io import measure_read_bandwidth
from loaders.safetensors_files import Checkpoint, read_checkpoint
from loaders.spec import ModelSpec, read_config, read_spec
from loaders.vocabulary import compare_vocabularies
from offload_runtime.draft_choice import DraftChoice, choose_draft
from offload_runtime.errors import MachineError, UsageError
from scheduler.machine import Machine, read_machine
from scheduler.plan import Limits, Plan, Tier, make_plan
from scheduler.sizes import parse_size

DEMO_PAIR = Path(__file__).parent / "demo_pair"
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

    draft: None for none; "auto" for a known one that is on this machine, or else what the text said before.
    share_layers: the files hold the target's first few layers only, and the others repeat them in turn.
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

    def __post_init__(self) -> None:
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


@dataclass(frozen=True)
class ModelFiles:
    """One model on disk and what its headers say."""

    spec: ModelSpec
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Preparation:
    """Everything that is decided before a weight is read.

    draft_note: one line for the user on what was found where the choice of a draft was left open.
    """

    options: Options
    target: ModelFiles
    draft: ModelFiles | None
    machine: Machine
    limits: Limits
    plan: Plan
    draft_note: str | None = None

    @property
    def draft_directory(self) -> Path | None:
        """Where the draft that is used lies."""
        return self.draft.spec.directory if self.draft else None

    def with_specs(self, target: ModelSpec, draft: ModelSpec | None) -> "Preparation":
        """The same with exact specs in place of those read off the headers."""
        files = replace(self.target, spec=target)
        draft_files = replace(self.draft, spec=draft) if self.draft and draft else None
        return replace(self, target=files, draft=draft_files, plan=make_plan(target, draft, self.machine, self.limits))


def resolve_draft(model: Path, draft: str | Path | None) -> Path | Literal["auto"] | None:
    """The draft's directory; "auto" is that of the bundled pair, and left to `prepare` for other models."""
    if draft == AUTO:
        return DEMO_DRAFT if model.resolve() == DEMO_TARGET.resolve() else AUTO
    return None if draft in (None, "none") else Path(draft)


def prepare(options: Options) -> Preparation:
    """Read configs and headers, look at the machine, choose a draft where that was left open, and make the plan.

    Raises ModelFilesError, UnsupportedModelError, MachineError, DoesNotFitError, DraftMismatchError or UsageError.
    """
    try:
        machine = read_machine(_usable_device(options.device))
        limits = _limits(options)
        target = _read(options.model, options.dtype, machine, options.share_layers)
        choice = _choose(options, target.spec, machine, limits)
        draft = _read(choice.directory, options.dtype, machine) if choice.directory else None
        if draft:
            compare_vocabularies(
                target.spec.directory, draft.spec.directory, target.spec.vocab_size, draft.spec.vocab_size
            )
        elif options.draft == AUTO and options.tree == "auto":
            limits = replace(limits, repeat_text=True)
        plan = make_plan(target.spec, draft.spec if draft else None, machine, limits)
        if Tier.DISK in plan.tiers:
            measured = measure_read_bandwidth(target.checkpoint.files, chunk_bytes=plan.read_chunk_bytes)
            machine = replace(machine, disk_bandwidth=measured.bytes_per_second)
            plan = make_plan(target.spec, draft.spec if draft else None, machine, limits)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Preparation(options, target, draft, machine, limits, plan, choice.note)


def _choose(options: Options, target: ModelSpec, machine: Machine, limits: Limits) -> DraftChoice:
    """The draft that was named, none where none can be used, or the one to be found."""
    if options.draft is None or options.tree == "none":
        return DraftChoice()
    if options.draft != AUTO:
        return DraftChoice(options.draft)
    return choose_draft(target, machine, limits, lambda directory: _read(directory, options.dtype, machine).spec)


def _usable_device(device: str) -> str:
    """Take the GPU out of the question where the installed PyTorch has no CUDA; asked without importing it.

    Raises MachineError where "cuda" was asked for.
    """
    build = version("torch")
    if not build.endswith("+cpu") or device == "cpu":
        return device
    if device == "cuda":
        raise MachineError(
            f"the installed PyTorch ({build}) is built without CUDA.\n"
            "  pip install --force-reinstall torch   installs the CUDA build where there is one\n"
            "  --device cpu                          runs without"
        )
    return "cpu"


def _limits(options: Options) -> Limits:
    names = ("device_memory", "host_memory", "context_length", "tree_size", "tree_depth")
    values = {name: getattr(options, name) for name in names}
    for name in ("device_memory", "host_memory"):
        if isinstance(values[name], str):
            values[name] = parse_size(values[name])
    limits: dict[str, Any] = {name: None if value == "auto" else value for name, value in values.items()}
    return Limits(**limits)


def _read(directory: Path, dtype: str, machine: Machine, shared: bool = False) -> ModelFiles:
    checkpoint, config = read_checkpoint(directory), read_config(directory)
    stored = config.get("stored_layers")  # of a widened model: which layer of the files each layer is
    if shared or stored is not None:
        from loaders.random_checkpoint import share_layers

        checkpoint = share_layers(checkpoint, config["num_hidden_layers"], stored)
    spec = read_spec(directory, dtype, checkpoint)
    if dtype == "auto" and machine.device == "cpu" and spec.dtype != "float32" and not _cpu_has_bfloat16():
        spec = read_spec(directory, "float32", checkpoint)
    return ModelFiles(spec, checkpoint)


def _cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 have their own instructions; without, they run about 50 times slower."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    features = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not features.isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})
