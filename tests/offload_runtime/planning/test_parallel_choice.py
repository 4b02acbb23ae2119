"""How many texts share a pass where the planner chooses, and what a plan predicts of them."""

import re
from dataclasses import replace

import pytest

from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import GIB
from offload_runtime.options.run_options import Options
from offload_runtime.planning.best_plan import best_plan
from offload_runtime.planning.expected_acceptance import assumed_acceptance
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.parallel_choice import KEPT_PACE, MOST_CHOSEN, best_parallel_plan
from offload_runtime.planning.planning import prepare
from offload_runtime.planning.prediction import predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.data_sheets import planned_machine
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan
from tests.plan_samples import (
    LLAMA2_70B,
    LLAMA3_8B,
    LLAMA3_8B_INT4,
    LLAMA3_70B,
    LLAMA3_70B_INT4,
    LLAMA_68M,
    SMALLEST,
    cpu,
    gpu,
)
from tests.samples.tiny_models import checkpoint

ACCEPTANCE = tuple(assumed_acceptance(8000))
ANY = Limits(parallel=None)
PASSES = {"pass_seconds": 1e-3, "layer_seconds": 0.35e-3}
PAIRS = [
    *((LLAMA2_70B, LLAMA_68M), (LLAMA3_70B, LLAMA3_8B_INT4), (LLAMA3_70B_INT4, LLAMA3_8B_INT4)),
    *((LLAMA3_70B_INT4, None), (LLAMA3_8B, None), (LLAMA3_8B_INT4, LLAMA_68M), (SMALLEST, None)),
]
SPEED = {"flops": 5e11, "memory_bandwidth": 3e10, **PASSES}
MACHINES = {
    **{name: replace(planned_machine(name, cpu(GIB), 256 * GIB), **PASSES) for name in ("rtx-4090", "l40", "rtx-5090")},
    **{f"unknown {size}": gpu(size * GIB) for size in (12, 24, 80)},
    **{f"processor {size}": replace(cpu(size * GIB, 2e9), **SPEED) for size in (8, 64, 256)},
}


def chosen(target: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits = ANY) -> Plan | None:
    try:
        return best_parallel_plan(target, draft, machine, limits, ACCEPTANCE if draft else ())
    except DoesNotFitError:
        return None


def pace(plan: Plan, target: ModelSpec, draft: ModelSpec | None) -> float:
    """Tokens per second in all."""
    return predict(plan, target, draft, ACCEPTANCE if draft else (), plan.texts).tokens_per_second


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_texts_share_a_machine_only_where_that_pays(name: str, target: ModelSpec, draft: ModelSpec | None) -> None:
    machine = MACHINES[name]
    plan, one = (chosen(target, draft, machine, limits) for limits in (ANY, Limits()))
    if plan is None or one is None:
        assert plan is one, "what runs with one text runs if the number is left open"
        return
    assert 1 <= plan.texts <= MOST_CHOSEN and plan.device_bytes <= plan.device_budget
    assert (plan.context_length, plan.context_wanted) == (one.context_length, one.context_wanted)
    if machine.flops is None:
        assert plan.streamed_bytes <= one.streamed_bytes
        return
    total, alone = pace(plan, target, draft), pace(one, target, draft)
    assert total >= alone
    assert plan.streamed_bytes <= one.streamed_bytes or total / plan.texts >= KEPT_PACE * alone


def test_known_choices() -> None:
    assert chosen(LLAMA3_8B, None, MACHINES["l40"]).texts == 8, "memory lies idle"
    streams = chosen(LLAMA3_70B_INT4, LLAMA3_8B_INT4, MACHINES["rtx-4090"])
    assert 1 < streams.texts < 8 and streams.slots
    more = best_plan(*(LLAMA3_70B_INT4, LLAMA3_8B_INT4, MACHINES["rtx-4090"]), Limits(parallel=8), ACCEPTANCE)
    one = chosen(LLAMA3_70B_INT4, LLAMA3_8B_INT4, MACHINES["rtx-4090"], Limits())
    each = pace(more, LLAMA3_70B_INT4, LLAMA3_8B_INT4) / 8
    assert each < KEPT_PACE * pace(one, LLAMA3_70B_INT4, LLAMA3_8B_INT4), "each would wait too long"
    assert chosen(LLAMA3_70B, None, gpu(24 * GIB)).texts == 1, "not known to pay"
    assert chosen(replace(LLAMA3_8B, recurrent=True), None, MACHINES["l40"]).texts == 1
    assert chosen(LLAMA3_8B, None, MACHINES["l40"], Limits(parallel=3)).texts == 3


def test_memory_that_would_lie_idle_is_used_up_to_where_layers_would_stream() -> None:
    whole = chosen(LLAMA3_8B, None, gpu(80 * GIB))
    assert whole.texts == 8 and not whole.slots
    each = whole.kv_bytes + whole.workspace_bytes // 8
    for missing in range(1, 6):
        cap = whole.device_bytes - missing * each
        plan = chosen(LLAMA3_8B, None, gpu(80 * GIB), replace(ANY, device_memory=cap, context_length=4096))
        assert 1 <= plan.texts < 8 and not plan.slots
        with_one_more = best_plan(LLAMA3_8B, None, gpu(80 * GIB), Limits(cap, None, 4096, parallel=plan.texts + 1), ())
        assert with_one_more.slots


def test_several_texts_have_smaller_trees_that_are_no_larger_than_alone() -> None:
    machine = MACHINES["rtx-4090"]
    one, several = (
        best_plan(LLAMA3_70B_INT4, LLAMA3_8B_INT4, machine, Limits(parallel=texts), ACCEPTANCE) for texts in (1, 8)
    )
    assert several.tree_size <= one.tree_size == one.nodes
    trees = [predict(plan, LLAMA3_70B_INT4, LLAMA3_8B_INT4, ACCEPTANCE, plan.texts).tree for plan in (one, several)]
    assert trees[1].size < trees[0].size and trees[1].size * 8 <= several.nodes
    given = best_plan(LLAMA3_70B_INT4, LLAMA3_8B_INT4, machine, Limits(parallel=8, tree_size=16), ACCEPTANCE)
    assert (given.tree_size, given.nodes) == (16, 128)


def test_a_pass_that_waits_for_the_link_is_shared_for_nothing() -> None:
    """Without a draft, and under one plan, 4 texts write 4 times the tokens but for the time of attention."""
    plan = best_plan(LLAMA3_70B, None, MACHINES["rtx-4090"], Limits(parallel=4), ())
    alone, together = (predict(plan, LLAMA3_70B, None, (), texts) for texts in (1, 4))
    assert together.texts == 4 and together.tokens_per_second == pytest.approx(4 * alone.tokens_per_second, rel=0.01)
    assert together.seconds_per_token == pytest.approx(alone.seconds_per_token, rel=0.01)


def test_a_plan_for_several_texts_says_how_fast_they_will_be() -> None:
    speed = {"flops": 1e12, "memory_bandwidth": 1e10, "disk_bandwidth": 1e6}
    options = {"device": "cpu", "tree_size": 8, "tree_depth": 3, "context_length": 64}
    target = checkpoint("llama")
    with pytest.raises(DoesNotFitError) as smallest:
        prepare(Options(target, None, device_memory=1, parallel=4, **options))
    known = prepare(Options(target, None, device_memory=smallest.value.needed, parallel=4, **options))
    assert known.plan.texts == 4 and known.plan.slots
    lines = [*forecast(known.replanned(machine=replace(known.machine, **speed)))]  # type: ignore[arg-type]
    (line,) = [line for line in lines if "texts" in line]
    found = re.fullmatch(r"4 texts at once: (\S+) tokens/s together, (\S+) each; one text alone (\S+)\.", line)
    assert found, line
    total, each, alone = map(float, found.groups())
    assert total == pytest.approx(4 * each, rel=0.1) and each <= alone * 1.1
