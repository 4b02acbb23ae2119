"""The error when nothing fits: the memory needed, item by item, and options that would work on this machine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from loaders.sizes import format_cap, format_size, parse_size
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.memory import PROCESS_BYTES, PlanItem, device_budget
from scheduler.plan.request import Limits, PlanRequest

SMALLEST_CONTEXT = 64
SMALLEST_TREE = 8
MOST_OPTIONS = 3

Attempt = Callable[[PlanRequest], str | None]
Option = tuple[str, PlanRequest]


@dataclass(frozen=True)
class Shortage:
    """The items that must fit in one memory ("device" or "host") and the bytes available there."""

    memory: str
    items: tuple[PlanItem, ...]
    available: int

    @property
    def needed(self) -> int:
        """Bytes of all items in the memory that is short."""
        return sum(self.bytes_of(item) for item in self.items)

    def bytes_of(self, item: PlanItem) -> int:
        """Bytes of one item in the memory that is short."""
        return item.device_bytes if self.memory == "device" else item.host_bytes


def refusal(request: PlanRequest, shortage: Shortage, attempt: Attempt) -> DoesNotFitError:
    """The error for `shortage`. `attempt` describes the effect of a changed request; None if it does not fit either."""
    options = _working_options(request, shortage, attempt)
    width = max((len(flags) for flags, _ in options), default=0)
    advice = [f"  {flags:<{width}}  {effect}" for flags, effect in options]
    lines = [
        _headline(request, shortage),
        *_itemised(shortage),
        "Options that work here:" if options else "Nothing smaller fits either: the model needs more memory.",
        *advice,
    ]
    return DoesNotFitError("\n".join(lines), shortage.needed, shortage.available, tuple(flags for flags, _ in options))


def _headline(request: PlanRequest, shortage: Shortage) -> str:
    machine, on_gpu = request.machine, shortage.memory == "device" and request.machine.device == "cuda"
    total, free = (
        (machine.device_total, machine.device_free) if on_gpu else (machine.host_total, machine.host_available)
    )
    return (
        f"{request.spec.name} does not fit: at least {format_size(shortage.needed)} of {'GPU ' * on_gpu}memory needed, "
        f"{format_size(shortage.available)} may be used ({format_size(free)} of {format_size(total)} are free)"
    )


def _itemised(shortage: Shortage) -> Iterator[str]:
    rows = [(item.name, shortage.bytes_of(item)) for item in shortage.items if shortage.bytes_of(item)]
    width = max(len(name) for name, _ in rows)
    return (f"  {name:<{width}}  {format_size(nbytes):>8}" for name, nbytes in rows)


def _working_options(request: PlanRequest, shortage: Shortage, attempt: Attempt) -> list[tuple[str, str]]:
    """(flags, effect) of up to three options that fit, one per kind; combinations only if no single option fits."""
    singles = [
        _raised_caps(request, shortage),
        _other_place_of_rows(request),
        _fewer_texts(request),
        _smaller_weights(request),
        _shorter_contexts(request),
        _smaller_rows(request),
        _smaller_trees(request),
        _no_draft(request),
    ]
    for kinds in (singles, [_smallest(request), _without_gpu(request)]):
        found = [_first_that_fits(request, kind, attempt) for kind in kinds]
        options = [option for option in found if option is not None]
        if options:
            return options[:MOST_OPTIONS]
    return []


def _first_that_fits(request: PlanRequest, alternatives: Iterator[Option], attempt: Attempt) -> tuple[str, str] | None:
    for flags, changed in alternatives:
        if effect := attempt(changed):
            return flags, effect + _freed(request, changed)
    return None


def _other_place_of_rows(request: PlanRequest) -> Iterator[Option]:
    """KV rows in the other memory, where the user has said in which they lie."""
    other = {"device": "host", "host": "device"}.get(request.limits.kv or "")
    if other and request.kv_stays is None:
        yield f"--kv {other}", _limited(request, kv=other)


def _fewer_texts(request: PlanRequest) -> Iterator[Option]:
    if request.texts > 1:
        for texts in _powers_below(request.texts, 1):
            yield f"--parallel {texts}", _limited(request, parallel=texts)


def _freed(request: PlanRequest, changed: PlanRequest) -> str:
    """What fewer texts free in the smallest attempt, in words; nothing where their number is the same."""
    if request.texts == changed.texts:
        return ""
    return f", frees {format_size(_least_beside_layers(request) - _least_beside_layers(changed))}"


def _least_beside_layers(request: PlanRequest) -> int:
    """Device bytes of the smallest attempt, but for the target's layers."""
    shapes = request.streaming_shapes(request.context_lengths[-1])
    return min(sum(item.device_bytes for item in request.fixed_items(shape)) for shape in shapes)


def _smaller_weights(request: PlanRequest) -> Iterator[Option]:
    return ((flags, replace(request, spec=spec)) for flags, spec in request.smaller)


def _smaller_rows(request: PlanRequest) -> Iterator[Option]:
    """KV rows in 8 bits, which make another model of it, as smaller weights do."""
    if request.spec.kv_bits is None and request.spec.why_not_8_bits is None:
        yield "--kv-bits 8", replace(request, spec=request.spec.with_rows_in_8_bits())


def _shorter_contexts(request: PlanRequest) -> Iterator[Option]:
    for length in _powers_below(request.context_lengths[-1], SMALLEST_CONTEXT):
        yield f"--context-length {length}", _limited(request, context_length=length)


def _smaller_trees(request: PlanRequest) -> Iterator[Option]:
    if request.draft is not None:
        for size in _powers_below(request.streaming_tree_sizes[-1], SMALLEST_TREE):
            yield f"--tree-size {size}", _limited(request, tree_size=size)


def _no_draft(request: PlanRequest) -> Iterator[Option]:
    if request.draft is not None:
        yield "--draft none", replace(request, draft=None)


def _smallest(request: PlanRequest) -> Iterator[Option]:
    """One text, no draft and a short context: the smallest request that can run."""
    flags: list[str] = []
    changed = request
    if request.texts > 1:
        flags, changed = ["--parallel 1"], _limited(request, parallel=1)
    for more, smaller in _no_draft(changed):
        flags, changed = [*flags, more], smaller
    if len(flags) > 1:
        yield " ".join(flags), changed
    if flags:
        for more, smaller in _shorter_contexts(changed):
            yield " ".join([*flags, more]), smaller


def _without_gpu(request: PlanRequest) -> Iterator[Option]:
    """Host memory instead of the GPU, in the same dtype: the CPU's default dtype may be larger."""
    if request.machine.device == "cuda":
        yield f"--device cpu --dtype {request.spec.dtype}", replace(request, machine=request.machine.without_gpu())


def _raised_caps(request: PlanRequest, shortage: Shortage) -> Iterator[Option]:
    """Caps raised to exactly what is needed, if that much is free beside the process itself."""
    if shortage.needed > _unused(request.machine, shortage.memory):
        return
    cap = format_cap(shortage.needed)
    raised = _caps_below(request, shortage) or [f"{shortage.memory}_memory"]
    flags = " ".join(f"--{name.replace('_', '-')} {cap}" for name in raised)
    yield flags, _limited(request, **dict.fromkeys(raised, parse_size(cap)))


def _caps_below(request: PlanRequest, shortage: Shortage) -> list[str]:
    """The caps that are below what is needed; on a CPU both can be."""
    names = ("device_memory", "host_memory") if request.machine.device == "cpu" else (f"{shortage.memory}_memory",)
    caps = {name: getattr(request.limits, name) for name in names}
    return [name for name, cap in caps.items() if cap is not None and cap < shortage.needed]


def _unused(machine: Machine, memory: str) -> int:
    if memory == "device" and machine.device == "cuda":
        return device_budget(machine, None)
    return machine.host_available - PROCESS_BYTES


def _limited(request: PlanRequest, **changes: Any) -> PlanRequest:
    limits: Limits = replace(request.limits, **changes)
    return replace(request, limits=limits)


def _powers_below(value: int, least: int) -> Iterator[int]:
    """Powers of two below `value`, the largest first, down to `least`."""
    power = 1 << max(0, (value - 1).bit_length() - 1)
    while power >= least:
        yield power
        power //= 2
