"""Where the KV rows lie if the planner chooses: on the device, unless there is no room or passes take less."""

from dataclasses import replace

import pytest

from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import GIB
from offload_runtime.planning.expected_acceptance import assumed_acceptance
from offload_runtime.planning.kv_choice import GAIN, best_kv_plan, fitting_plan
from offload_runtime.planning.parallel_choice import best_parallel_plan
from offload_runtime.planning.prediction import predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.data_sheets import planned_machine
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan
from tests.plan_samples import LLAMA3_8B, LLAMA3_8B_INT4, LLAMA3_70B, LLAMA3_70B_INT4, cpu, gpu

ACCEPTANCE = tuple(assumed_acceptance(8000))
PASSES = {"pass_seconds": 1e-3, "layer_seconds": 0.35e-3}
CARDS = {
    name: replace(planned_machine(name, cpu(GIB), 256 * GIB), **PASSES) for name in ("rtx-4090", "l40", "rtx-5090")
}
BF16, INT4, SMALL = (replace(spec, max_positions=131_072) for spec in (LLAMA3_70B, LLAMA3_70B_INT4, LLAMA3_8B))
PAIRS = [(BF16, LLAMA3_8B_INT4), (INT4, LLAMA3_8B_INT4), (INT4, None), (SMALL, None)]


def plan_with(
    target: ModelSpec, draft: ModelSpec | None, machine: Machine, kv: str | None, texts: int, context: int | None
) -> Plan | None:
    limits = Limits(kv=kv, parallel=texts, context_length=context)
    try:
        return best_kv_plan(target, draft, machine, limits, ACCEPTANCE if draft else ())
    except DoesNotFitError:
        return None


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize(("target", "draft"), PAIRS)
@pytest.mark.parametrize(("texts", "context"), [(1, None), (8, None), (1, 32_768), (4, 32_768)])
def test_the_memory_that_serves_better_is_chosen(
    name: str, target: ModelSpec, draft: ModelSpec | None, texts: int, context: int | None
) -> None:
    chosen, here, there = (plan_with(target, draft, CARDS[name], kv, texts, context) for kv in (None, "device", "host"))
    if here is None or there is None:
        assert chosen == (here or there), "what fits in one of them fits"
        return
    assert chosen in (here, there)
    if here.context_length != there.context_length:
        assert chosen is max(here, there, key=lambda plan: plan.context_length)
        return
    paces = [
        predict(plan, target, draft, ACCEPTANCE if draft else (), texts).tokens_per_second for plan in (here, there)
    ]
    assert (chosen == there) == (paces[1] >= GAIN * paces[0])


def test_known_choices() -> None:
    card = CARDS["rtx-4090"]
    assert plan_with(INT4, None, card, None, 1, None).kv == "device", "some percent are not worth it"
    assert plan_with(INT4, None, card, None, 8, None).kv == "host", "rows that are not in use take no layer's place"
    assert plan_with(SMALL, None, card, None, 4, None).kv == "device", "nothing streams either way"
    assert plan_with(BF16, LLAMA3_8B_INT4, card, "device", 1, 32_768) is None
    assert plan_with(BF16, LLAMA3_8B_INT4, card, None, 1, 32_768).kv == "host"


def test_a_context_is_kept_long_by_rows_on_the_host() -> None:
    tight = gpu(10 * GIB)
    here, chosen = (plan_with(BF16, None, tight, kv, 8, None) for kv in ("device", None))
    assert here.context_length < chosen.context_length == 4096 and chosen.kv == "host"


def test_rows_stay_where_they_must() -> None:
    card = CARDS["rtx-4090"]
    for spec in (replace(INT4, recurrent=True), replace(INT4, shares_kv=True)):
        plan = plan_with(spec, None, card, None, 8, None)
        assert plan.kv == "device" and plan.kv_stays is None
    assert plan_with(INT4, None, replace(card, pinned_limit=GIB), None, 8, None).kv == "device"
    assert plan_with(INT4, None, cpu(256 * GIB, 2e9), None, 8, None).kv == "device"


def test_without_known_speeds_they_go_to_the_host_only_for_want_of_room() -> None:
    unknown = gpu(24 * GIB)
    assert plan_with(INT4, None, unknown, None, 8, None).kv == "device"
    assert plan_with(INT4, None, unknown, None, 8, 32_768).kv == "host"
    assert fitting_plan(INT4, None, unknown, Limits(parallel=8, context_length=32_768)).kv == "host"
    assert fitting_plan(INT4, None, unknown, Limits(parallel=8)).kv == "device"
    assert fitting_plan(INT4, None, unknown, Limits(parallel=8, context_length=32_768, kv="device")) is None


def test_a_refusal_is_about_the_device() -> None:
    with pytest.raises(DoesNotFitError, match="GPU memory needed"):
        best_kv_plan(BF16, None, gpu(3 * GIB), Limits(), ())


def test_rows_that_travel_count_where_the_number_of_texts_is_chosen() -> None:
    """Nothing but rows would cross the link: 8 texts are no free gift then."""
    for card in (CARDS["rtx-4090"], gpu(24 * GIB)):
        plan = best_parallel_plan(SMALL, None, card, Limits(parallel=None, context_length=32_768), ())
        assert plan.kv == "device" and plan.texts == 1
