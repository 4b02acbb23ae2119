"""From what the user asks for to a plan, without reading a weight and without importing torch."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from loaders.gguf.model import model_path
from loaders.model_files import read_checkpoint
from loaders.safetensors_files import Checkpoint
from loaders.spec import ModelSpec, read_config, read_spec
from offload_runtime.best_plan import best_plan
from offload_runtime.errors import MachineError, UsageError
from offload_runtime.expected_acceptance import ExpectedAcceptance, expected_acceptance
from scheduler.hardware import planned_machine, recognised, with_data_sheet
from scheduler.machine import Machine, read_machine
from scheduler.measurements import read_bandwidth, with_known_speed
from scheduler.plan import Limits, Plan, Tier
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


@dataclass(frozen=True)
class Options:
    """What a user may fix about a run; None and "auto" leave it to the planner. Sizes are bytes or text like "20GiB".

    share_layers: the files hold the target's first few layers only, and the others repeat them in turn. gpu: plan for
    this card (of `scheduler.hardware`) in place of the machine's own, with `host_memory` beside it, all free.
    """

    model: Path
    draft: Path | None = None
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
    """Everything that is decided before a weight is read. acceptance: None without a draft."""

    options: Options
    target: ModelFiles
    draft: ModelFiles | None
    machine: Machine
    limits: Limits
    acceptance: ExpectedAcceptance | None
    plan: Plan

    def replanned(
        self,
        target: ModelSpec | None = None,
        draft: ModelSpec | None = None,
        machine: Machine | None = None,
        limits: Limits | None = None,
    ) -> "Preparation":
        """The same with exact specs in place of those read off the headers, a machine better known, or other limits."""
        new_target = replace(self.target, spec=target or self.target.spec)
        new_draft = replace(self.draft, spec=draft or self.draft.spec) if self.draft else None
        machine, limits = machine or self.machine, limits or self.limits
        plan = _plan(self.options, new_target, new_draft, machine, limits, self.acceptance)
        return replace(self, target=new_target, draft=new_draft, machine=machine, limits=limits, plan=plan)


def resolve_model(model: str | Path) -> Path:
    """The model's directory, or its GGUF file. Raises ModelFilesError for a directory with several of these."""
    return model_path(model)


def resolve_draft(model: Path, draft: str | Path | None) -> Path | None:
    """The draft's directory or GGUF file; "auto" knows the bundled pair, else decodes plainly; "none" always does."""
    if draft == "auto":
        return DEMO_DRAFT if model.resolve() == DEMO_TARGET.resolve() else None
    return None if draft in (None, "none") else model_path(draft)


def prepare(options: Options) -> Preparation:
    """Read configs and headers, look at the machine and make the plan.

    Raises ModelFilesError, UnsupportedModelError, MachineError, DoesNotFitError or UsageError.
    """
    try:
        machine, limits = _machine(options), _limits(options)
        target = _read(options.model, options.dtype, machine, options.share_layers)
        draft = acceptance = None
        if options.draft is not None and options.tree != "none":
            draft = _read(options.draft, options.dtype, machine)
            acceptance = expected_acceptance(options.model, options.draft)
        machine = _with_speed(machine, target.spec.dtype)
        plan = _plan(options, target, draft, machine, limits, acceptance)
        preparation = Preparation(options, target, draft, machine, limits, acceptance, plan)
        if Tier.DISK not in plan.tiers:
            return preparation
        rate = read_bandwidth(target.checkpoint.files, plan.read_chunk_bytes)
        return preparation.replanned(machine=replace(machine, disk_bandwidth=rate))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _plan(
    options: Options,
    target: ModelFiles,
    draft: ModelFiles | None,
    machine: Machine,
    limits: Limits,
    acceptance: ExpectedAcceptance | None,
) -> Plan:
    by_child = acceptance.verified_by(options.rule) if acceptance else ()
    return best_plan(target.spec, draft.spec if draft else None, machine, limits, by_child)


def _machine(options: Options) -> Machine:
    """The machine to plan for: this one, or one with the GPU that is asked for by name."""
    if options.gpu is None:
        return read_machine(_usable_device(options.device))
    host_memory = options.host_memory
    return planned_machine(
        options.gpu, read_machine("cpu"), parse_size(host_memory) if isinstance(host_memory, str) else host_memory
    )


def _with_speed(machine: Machine, dtype: str) -> Machine:
    """What was measured at earlier starts, or else what a data sheet says of the GPU."""
    machine = with_known_speed(machine, dtype, version("torch"))
    gpu = recognised(machine.device_name) if machine.device == "cuda" else None
    return with_data_sheet(machine, gpu) if gpu else machine


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
    if options.gpu is not None:
        values["host_memory"] = None  # it is what the planned machine has, not a cap
    return Limits(**{name: None if value == "auto" else value for name, value in values.items()})


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
