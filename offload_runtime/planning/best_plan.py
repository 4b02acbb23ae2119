"""Finds the plan whose tree is predicted to be fastest. Imports no torch."""

from dataclasses import replace
from functools import lru_cache

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.planning.prediction import Prediction, predict
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan, find_plan, make_plan
from sequoia_tree.choice.choose import MAX_DEPTH, enough_depth

# Nodes of the trees that are compared. Larger trees need more workspace, so more layers stream.
SIZES = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
NEAR = 1.01  # the smallest tree within this factor of the fastest is chosen


@lru_cache(maxsize=8)  # plans for several texts all ask for the one of a single text
def best_plan(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, acceptance: tuple[float, ...]
) -> Plan:
    """Like `make_plan`, but compares several tree sizes if the size is free and its speed can be predicted.

    That is the case if layers stream to a GPU of known speed, there is a draft, and the user gives no size. With
    several texts, sizes of all trees together are compared; one tree is then no larger than the best for one text.
    Trees are as deep as the acceptance, by child number, says. Raises what `make_plan` raises.
    """
    plan = _deep(make_plan(target, draft, machine, limits), draft, limits, acceptance)
    free = draft is not None and limits.tree_size is None and machine.device == "cuda" and plan.slots > 0
    if not free or machine.flops is None or machine.link_bandwidth is None:
        return plan
    most = None
    if plan.texts > 1:
        most = best_plan(target, draft, machine, replace(limits, parallel=1), acceptance).tree_size
    predictions = _weighed(plan, target, draft, limits, acceptance, most)
    if not predictions:
        return plan
    least = min(prediction.seconds_per_token for _, prediction in predictions)
    return next(plan for plan, prediction in predictions if prediction.seconds_per_token <= NEAR * least)


def _weighed(
    first: Plan,
    target: ModelSpec,
    draft: ModelSpec | None,
    limits: Limits,
    acceptance: tuple[float, ...],
    most: int | None,
) -> list[tuple[Plan, Prediction]]:
    """Plans for trees of increasing size, as far as they fit, with the context length of `first`.

    most: nodes of one tree, where the sizes are those of all texts' trees together.
    """
    weighed = []
    for size in SIZES:
        sized = replace(limits, tree_size=size, context_length=first.context_length)
        if most is not None:
            sized = replace(sized, tree_size=min(size, most), nodes=size)
        found = find_plan(target, draft, first.machine, sized)
        if found is None:
            break
        plan = _deep(found, draft, sized, acceptance)
        prediction = predict(plan, target, draft, acceptance, plan.texts)
        weighed.append((replace(plan, context_wanted=first.context_wanted), prediction))
    return weighed


def _deep(plan: Plan, draft: ModelSpec | None, limits: Limits, acceptance: tuple[float, ...]) -> Plan:
    """The plan with as many levels as trees of its size need, if that is more; where nothing streams, levels are dear.

    A limit of the user stays.
    """
    if draft is None or not plan.slots or limits.tree_depth is not None:
        return plan
    enough = enough_depth(acceptance, plan.tree_size, min(MAX_DEPTH, plan.tree_size - 1))
    return replace(plan, tree_depth=max(plan.tree_depth, enough))
