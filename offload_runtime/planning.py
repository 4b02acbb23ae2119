"""From what the user asks for to a plan, without reading a weight and without importing torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from loaders.direct_io import measure_read_bandwidth
from loaders.quantization import BITS, Quantization
from loaders.safetensors_files import Checkpoint, read_checkpoint
from loaders.spec import ModelSpec, read_config, read_spec
from offload_runtime.errors import DoesNotFitError, MachineError, UnsupportedModelError, UsageError
from offload_runtime.packing import Packing
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


@dataclass(frozen=True)
class Options:
    """What a user may fix about a run; None and "auto" leave it to the planner. Sizes are bytes or text like "20GiB".

    share_layers: the files hold the target's first few layers only, and the others repeat them in turn.
    quantize: pack the target's weights as "int8" or "int4", once; they are kept in `quantized_directory`, or in the
    user's cache.
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
    quantize: str | None = None
    quantized_directory: Path | None = None

    def __post_init__(self) -> None:
        if self.quantize not in (None, *BITS):
            raise UsageError(f"quantize {self.quantize!r} is none of {', '.join(BITS)}")
        if self.quantized_directory is not None and self.quantize is None:
            raise UsageError(
                f"{self.quantized_directory} is for packed weights: say which with --quantize int4 or int8"
            )
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
    """Everything that is decided before a weight is read. packing: of the target, where that is asked for."""

    options: Options
    target: ModelFiles
    draft: ModelFiles | None
    machine: Machine
    limits: Limits
    plan: Plan
    packing: Packing | None = None

    def with_specs(self, target: ModelSpec, draft: ModelSpec | None) -> "Preparation":
        """The same with exact specs in place of those read off the headers."""
        files = replace(self.target, spec=target)
        draft_files = replace(self.draft, spec=draft) if self.draft and draft else None
        return replace(self, target=files, draft=draft_files, plan=make_plan(target, draft, self.machine, self.limits))


def resolve_draft(model: Path, draft: str | Path | None) -> Path | None:
    """The draft's directory; "auto" knows the bundled pair and decodes plainly otherwise, "none" always does."""
    if draft == "auto":
        return DEMO_DRAFT if model.resolve() == DEMO_TARGET.resolve() else None
    return None if draft in (None, "none") else Path(draft)


def prepare(options: Options) -> Preparation:
    """Read configs and headers, look at the machine and make the plan.

    Raises ModelFilesError, UnsupportedModelError, MachineError, DoesNotFitError or UsageError.
    """
    try:
        machine = read_machine(_usable_device(options.device))
        limits = _limits(options)
        target, packing = _read_target(options, machine)
        draft = (
            None if options.draft is None or options.tree == "none" else _read(options.draft, options.dtype, machine)
        )
        draft_spec = draft.spec if draft else None
        try:
            plan = make_plan(target.spec, draft_spec, machine, limits)
        except DoesNotFitError:
            make_plan(target.spec, draft_spec, machine, limits, tuple(_smaller(options, machine)))  # with more advice
            raise
        if Tier.DISK in plan.tiers:
            files = packing.files_at_hand if packing else target.checkpoint.files
            measured = measure_read_bandwidth(files, chunk_bytes=plan.read_chunk_bytes)
            machine = replace(machine, disk_bandwidth=measured.bytes_per_second)
            plan = make_plan(target.spec, draft_spec, machine, limits)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Preparation(options, target, draft, machine, limits, plan, packing)


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
    return Limits(**{name: None if value == "auto" else value for name, value in values.items()})


def _read_target(options: Options, machine: Machine) -> tuple[ModelFiles, Packing | None]:
    """The target's files, or the packed ones: those that are there, else those that will be, known by their sizes."""
    if options.quantize is None:
        return _read(options.model, options.dtype, machine, options.share_layers), None
    packing = Packing.of(options.model, options.quantize, options.quantized_directory)
    if packing.report:
        files = _read(packing.directory, options.dtype, machine, options.share_layers)
    else:
        files = _described(options, packing.quantization, packing.directory, machine)
    name = options.model.resolve().name
    return replace(files, spec=replace(files.spec, name=name)), packing


def _described(options: Options, quantization: Quantization, directory: Path, machine: Machine) -> ModelFiles:
    """The files that packing will write to `directory`."""
    config = quantization.config(read_config(options.model))
    checkpoint = quantization.checkpoint(directory)
    return _files(options.model, checkpoint, config, options.dtype, machine, options.share_layers)


def _smaller(options: Options, machine: Machine) -> Iterator[tuple[str, ModelSpec]]:
    """The target with weights packed, where it can be, to offer what fits."""
    for name, bits in BITS.items():
        if options.quantize is None:
            try:
                quantization = Quantization.of(read_checkpoint(options.model), read_config(options.model), bits)
            except UnsupportedModelError:
                return
            yield f"--quantize {name}", _described(options, quantization, options.model, machine).spec


def _read(directory: Path, dtype: str, machine: Machine, shared: bool = False) -> ModelFiles:
    return _files(directory, read_checkpoint(directory), read_config(directory), dtype, machine, shared)


def _files(
    directory: Path, checkpoint: Checkpoint, config: dict[str, Any], dtype: str, machine: Machine, shared: bool
) -> ModelFiles:
    stored = config.get("stored_layers")  # of a widened model: which layer of the files each layer is
    if shared or stored is not None:
        from loaders.random_checkpoint import share_layers

        checkpoint = share_layers(checkpoint, config["num_hidden_layers"], stored)
    spec = read_spec(directory, dtype, checkpoint, config)
    if dtype == "auto" and machine.device == "cpu" and spec.dtype != "float32" and not _cpu_has_bfloat16():
        spec = read_spec(directory, "float32", checkpoint, config)
    return ModelFiles(spec, checkpoint)


def _cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 have their own instructions; without, they run about 50 times slower."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    features = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not features.isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})
