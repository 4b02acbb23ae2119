"""Finds how many texts share a pass, where the user leaves their number to the planner. Imports no torch.

Every text takes memory for its KV caches. Where something streams, that memory would hold layers, so that more texts
make every pass longer; where nothing streams, it may lie idle.
"""

from collections.abc import Iterator
from dataclasses import replace

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.planning.kv_choice import best_kv_plan
from offload_runtime.planning.prediction import is_predictable, predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan

MOST_CHOSEN = 8  # more are for the user to ask for: each further text adds less, and takes as much memory
KEPT_PACE = 0.75  # of what a text writes alone, if it is to share a machine on which layers stream


def best_parallel_plan(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan:
    """Like `best_kv_plan`, with the number of texts that is predicted to write the most tokens per second in all.

    Considered are up to `MOST_CHOSEN` texts with the context that one has, if no more streams than for one, or if each
    is predicted to keep `KEPT_PACE` of its pace alone. If speeds are not known, the most texts for which no more
    streams. KV rows that cross the link count as streamed. Raises what `best_kv_plan` raises.
    """
    if limits.parallel is not None:
        return best_kv_plan(target, draft, machine, limits, acceptance)
    one = best_kv_plan(target, draft, machine, replace(limits, parallel=1), acceptance)
    plans = [one, *_of_several(one, target, draft, limits, acceptance)]
    free = [plan for plan in plans if _crossing(plan) <= _crossing(one)]
    if not is_predictable(one, target):
        return free[-1]
    paces = {plan.texts: predict(plan, target, draft, acceptance, plan.texts).tokens_per_second for plan in plans}
    kept = (plan for plan in plans if plan in free or paces[plan.texts] >= KEPT_PACE * plan.texts * paces[1])
    return max(kept, key=lambda plan: paces[plan.texts])


def _crossing(plan: Plan) -> int:
    """Bytes that a pass streams, and KV rows with them."""
    return plan.streamed_bytes + plan.kv_streamed_bytes


def _of_several(
    one: Plan, target: ModelSpec, draft: ModelSpec | None, limits: Limits, acceptance: tuple[float, ...]
) -> Iterator[Plan]:
    """Plans for two and more texts, as far as they fit, with the context length of `one`."""
    for texts in range(2, MOST_CHOSEN + 1 if target.can_branch else 1):
        shared = replace(limits, parallel=texts, context_length=one.context_length)
        try:
            plan = best_kv_plan(target, draft, one.machine, shared, acceptance)
        except DoesNotFitError:
            return
        yield replace(plan, context_wanted=one.context_wanted)
