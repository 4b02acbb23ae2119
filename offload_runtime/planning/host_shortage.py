"""Explains the error when, at load, the host has less memory than the plan assumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from loaders.sizes import format_cap, format_size, parse_size
from offload_runtime.errors import DoesNotFitError
from offload_runtime.planning.planning import Preparation
from scheduler.machine.machine import read_machine
from scheduler.plan.memory import host_budget
from scheduler.plan.plan import make_plan


@contextmanager
def host_shortage_explained(preparation: Preparation) -> Iterator[None]:
    """Around loading: raises DoesNotFitError if host memory is too small, before the block or within it.

    The check comes first because a system that overcommits memory kills programs instead of refusing an allocation.
    """
    if _needed(preparation) > read_machine("cpu").host_available:
        raise _shortage(preparation)
    try:
        yield
    except MemoryError as error:
        raise _shortage(preparation) from error


def _needed(preparation: Preparation) -> int:
    """Bytes of host memory that the plan takes."""
    plan = preparation.plan
    return plan.device_bytes if plan.device == "cpu" else plan.host_bytes


def _shortage(preparation: Preparation) -> DoesNotFitError:
    """The error, with a cap that works now. Raises the planner's own error if no cap does."""
    now = read_machine("cpu")
    available, total = now.host_available, now.host_total
    machine = replace(preparation.machine, host_total=total, host_available=available)
    if machine.device == "cpu":
        machine = replace(machine, device_total=total, device_free=available)
    cap = format_cap(min(host_budget(machine, None), int(0.9 * _needed(preparation))))
    plan = preparation.plan
    limits = replace(preparation.limits, host_memory=parse_size(cap), parallel=plan.texts, kv=plan.kv)
    make_plan(preparation.target.spec, preparation.draft.spec if preparation.draft else None, machine, limits)
    needed, option = _needed(preparation), f"--host-memory {cap}"
    return DoesNotFitError(
        f"{format_size(needed)} of memory were planned, and {format_size(available)} of {format_size(total)} are free: "
        f"another program may have taken some since, or a limit on this one is lower.\n  {option}   plans with less",
        needed,
        available,
        (option,),
    )
