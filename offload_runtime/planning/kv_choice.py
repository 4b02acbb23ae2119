"""Finds where the target's KV rows lie, where the user leaves that to the planner. Imports no torch.

On the device they take memory that could hold layers, for the whole context, used or not. In host memory those in use
cross the link in every pass.
"""

from dataclasses import replace

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.planning.best_plan import best_plan
from offload_runtime.planning.prediction import is_predictable, predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan, find_plan

# Rows in host memory must be predicted to be this much faster: for the texts of one context, some percent are the
# difference between a context that is half full and one that is nearly full.
GAIN = 1.1


def best_kv_plan(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan:
    """Like `best_plan`, with the KV rows in host memory if the context is then longer, or tokens `GAIN` times as fast.

    Raises what `best_plan` raises.
    """
    if limits.kv is not None or machine.device == "cpu":
        return best_plan(target, draft, machine, limits, acceptance)
    on_host = _fitting(target, draft, machine, replace(limits, kv="host"), acceptance)
    if on_host is None:
        return best_plan(target, draft, machine, limits, acceptance)
    here = _fitting(target, draft, machine, limits, acceptance)
    if here is None or here.context_length < on_host.context_length:
        return on_host
    if here.context_length > on_host.context_length or not is_predictable(here, target):
        return here
    paces = [predict(plan, target, draft, acceptance, plan.texts).tokens_per_second for plan in (here, on_host)]
    return on_host if paces[1] >= GAIN * paces[0] else here


def fitting_plan(target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits) -> Plan | None:
    """Like `find_plan`, with the KV rows in host memory where nothing fits with them on the device."""
    plan = find_plan(target, draft, machine, limits)
    if plan is not None or limits.kv is not None:
        return plan
    return find_plan(target, draft, machine, replace(limits, kv="host"))


def _fitting(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan | None:
    """The best plan if one fits and, with KV rows in host memory, if all of them can lie there pinned."""
    try:
        plan = best_plan(target, draft, machine, limits, acceptance)
    except DoesNotFitError:
        return None
    pinned = machine.pinned_limit is None or plan.texts * plan.cache_rows * plan.kv_token_bytes <= machine.pinned_limit
    return plan if plan.kv == (limits.kv or "device") and pinned else None
