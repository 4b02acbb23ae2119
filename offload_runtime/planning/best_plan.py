"""Finds the plan whose tree is predicted to be fastest. Imports no torch."""

from dataclasses import replace

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.planning.prediction import Prediction, predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan, make_plan

# Nodes of the trees that are compared. Larger trees need more workspace, so more layers stream.
SIZES = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
NEAR = 1.01  # the smallest tree within this factor of the fastest is chosen


def best_plan(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan:
    """Like `make_plan`, but compares several tree sizes if the size is free and its speed can be predicted.

    That is the case if layers stream to a GPU of known speed, there is a draft, and the user gives no size.
    acceptance: by child number. Raises what `make_plan` raises.
    """
    plan = make_plan(target, draft, machine, limits)
    free = draft is not None and limits.tree_size is None and machine.device == "cuda" and plan.slots > 0
    if not free or machine.flops is None or machine.link_bandwidth is None:
        return plan
    predictions = _weighed(plan, target, draft, limits, acceptance)
    if not predictions:
        return plan
    least = min(prediction.seconds_per_token for _, prediction in predictions)
    return next(plan for plan, prediction in predictions if prediction.seconds_per_token <= NEAR * least)


def _weighed(
    first: Plan, target: ModelSpec, draft: ModelSpec | None, limits: Limits, acceptance: tuple[float, ...]
) -> list[tuple[Plan, Prediction]]:
    """Plans for trees of increasing size, as far as they fit, with the context length of `first`."""
    weighed = []
    for size in SIZES:
        sized = replace(limits, tree_size=size, context_length=first.context_length)
        try:
            plan = make_plan(target, draft, first.machine, sized)
        except DoesNotFitError:
            break
        weighed.append((replace(plan, context_wanted=first.context_wanted), predict(plan, target, draft, acceptance)))
    return weighed
