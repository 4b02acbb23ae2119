"""The plan with room for the tree that is predicted to be fastest. Imports no torch."""

from dataclasses import replace

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.planning.prediction import Prediction, predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan, make_plan

# Nodes of the trees that are weighed. More of them need more workspace, and so stream more.
SIZES = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
NEAR = 1.01  # times as slow as the fastest: then the smaller tree is the better choice


def best_plan(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan:
    """As `make_plan`, which it tries for trees of several sizes where the choice is free and can be predicted.

    That is: layers stream to a GPU whose speed is known, with a draft, and the user names no size. `acceptance` is by
    child number. Raises what `make_plan` raises.
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
    """Plans for trees of rising size as far as they fit, with the context that `first` has room for."""
    weighed = []
    for size in SIZES:
        sized = replace(limits, tree_size=size, context_length=first.context_length)
        try:
            plan = make_plan(target, draft, first.machine, sized)
        except DoesNotFitError:
            break
        weighed.append((replace(plan, context_wanted=first.context_wanted), predict(plan, target, draft, acceptance)))
    return weighed
