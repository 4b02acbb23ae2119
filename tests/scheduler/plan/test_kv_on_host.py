"""KV rows in host memory: what they take where, what a pass over them costs, and what is said of it."""

from dataclasses import replace

import pytest

from loaders.sizes import GIB, MIB
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.placement import Tier
from scheduler.plan.plan import Limits, Plan, make_plan
from scheduler.plan.table import format_plan
from tests.plan_samples import LLAMA2_70B, LLAMA3_8B, LLAMA_68M, SMALLEST, cpu, gpu

KV, DRAFT_KV = LLAMA2_70B.kv_bytes_per_token, LLAMA_68M.kv_bytes_per_token
LAYER = LLAMA2_70B.layers[0].nbytes
LONG = replace(LLAMA3_8B, max_positions=131_072)


def plan_for(texts: int = 1, machine: Machine | None = None, kv: str | None = "host", **limits: int) -> Plan:
    return make_plan(LLAMA2_70B, LLAMA_68M, machine or gpu(24 * GIB), Limits(parallel=texts, kv=kv, **limits))


def item(plan: Plan, start: str) -> tuple[int, int]:
    """Device and host bytes of the one item whose name begins so."""
    (found,) = [(one.device_bytes, one.host_bytes) for one in plan.items if one.name.startswith(start)]
    return found


@pytest.mark.parametrize("texts", [1, 4])
def test_the_targets_rows_lie_in_host_memory_and_those_of_two_layers_on_the_device(texts: int) -> None:
    plan, usual = plan_for(texts, context_length=4000), plan_for(texts, kv="device", context_length=4000)
    rows = plan.texts * plan.cache_rows
    assert item(plan, "KV caches, ") == (rows * DRAFT_KV, rows * KV)
    assert item(plan, "the KV rows of two layers") == (2 * rows * KV // 80, 0)
    assert item(usual, "KV caches, ") == (rows * (KV + DRAFT_KV), 0)
    assert (plan.kv, plan.kv_token_bytes, plan.kv_streamed_bytes) == ("host", KV, texts * 4000 * KV)
    assert (usual.kv, usual.kv_token_bytes, usual.kv_streamed_bytes) == ("device", 0, 0)
    assert plan.kv_bytes == usual.kv_bytes and plan.streamed_bytes < usual.streamed_bytes
    assert plan.host_bytes <= plan.host_budget and plan.device_bytes <= plan.device_budget


def test_the_layer_that_caches_most_decides_what_two_layers_take() -> None:
    uneven = replace(LLAMA2_70B, largest_kv_bytes=9000)
    plan = make_plan(uneven, None, gpu(24 * GIB), Limits(kv="host"))
    assert item(plan, "the KV rows of two layers") == (2 * plan.cache_rows * 9000, 0)


def test_passes_with_rows_on_the_host_are_not_replayed() -> None:
    whole = gpu(192 * GIB)
    assert plan_for(1, whole).graphs == ("draft",) and plan_for(1, whole, "device").graphs == ("target", "draft")


@pytest.mark.parametrize(
    ("spec", "machine", "reason"),
    [
        (SMALLEST, cpu(4 * GIB), "the processor computes in host memory"),
        (replace(LLAMA2_70B, recurrent=True), gpu(24 * GIB), "a recurrent state is used whole in every pass"),
        (replace(LLAMA2_70B, shares_kv=True), gpu(24 * GIB), "some layers read what others have cached"),
    ],
)
def test_where_they_cannot_lie_there_the_plan_is_the_usual_one_and_says_why(spec, machine, reason) -> None:
    asked, usual = (make_plan(spec, None, machine, Limits(kv=kv)) for kv in ("host", None))
    assert asked == replace(usual, kv_stays=reason) and asked.kv == "device"
    assert f"--kv host changes nothing here: {reason}." in format_plan(asked)
    assert "--kv" not in format_plan(usual)


def test_the_table_says_what_travels() -> None:
    text = format_plan(plan_for(4))
    assert "KV rows cross the link with their layers: 328 kB for each token of a text, up to 5.37 GB in a pass." in text
    assert max(map(len, text.splitlines())) <= 100
    assert "KV rows" not in format_plan(plan_for(4, kv=None))


def test_host_memory_that_rows_take_is_not_there_for_layers() -> None:
    machine = gpu(24 * GIB, host=64 * GIB, disk=3e9)
    plan, usual = (plan_for(16, machine, kv, context_length=1024, tree_size=8) for kv in ("host", "device"))
    assert plan.tiers.count(Tier.HOST) < usual.tiers.count(Tier.HOST)
    assert plan.tiers.count(Tier.DEVICE) > usual.tiers.count(Tier.DEVICE)


def test_rows_are_pinned_before_layers() -> None:
    machine = replace(gpu(24 * GIB), pinned_limit=16 * GIB, pageable_bandwidth=8e9)
    plan, usual = plan_for(4, machine), plan_for(4, machine, "device")
    rows = plan.texts * plan.cache_rows * KV
    assert plan.pinned_limit == 16 * GIB - rows and usual.pinned_limit == 16 * GIB
    assert plan.target_cost(LLAMA2_70B).machine.pinned_limit == plan.pinned_limit
    assert plan.streamed_bytes - plan.pageable_bytes < usual.streamed_bytes - usual.pageable_bytes, "fewer layers"
    none_left = plan_for(16, replace(machine, pinned_limit=GIB), context_length=1024)
    assert none_left.pinned_limit == 0 and plan_for(1).pinned_limit is None


# Cost


def passes(plan: Plan, context: int, texts: int = 1) -> float:
    return plan.target_cost(LLAMA2_70B).seconds(texts, texts, context, texts=texts).total


def test_rows_in_use_add_to_what_crosses_the_link() -> None:
    plan = plan_for(4)
    for texts, context in ((1, 1000), (1, 4000), (4, 4000)):
        more = passes(plan, context, texts) - passes(plan, 0, texts)
        assert more == pytest.approx(texts * context * KV / 25e9, rel=0.05), "the link is waited for in any case"
    usual = plan_for(4, kv="device")
    assert passes(usual, 4000, 4) == pytest.approx(passes(usual, 0, 4), rel=0.01)


def test_rows_hide_behind_computing_where_nothing_streams() -> None:
    machine = replace(gpu(192 * GIB), flops=1e14, attention_flops=1e14, memory_bandwidth=1e12)
    plan, usual = plan_for(1, machine), plan_for(1, machine, "device")
    assert not plan.slots and passes(plan, 4000) == pytest.approx(passes(usual, 4000), rel=0.1)
    long = 100_000 * KV / 25e9
    assert passes(plan, 100_000) == pytest.approx(long, rel=0.1) and passes(usual, 100_000) < long / 2


def test_rows_from_memory_that_is_not_pinned_cross_more_slowly() -> None:
    machine = replace(gpu(24 * GIB), pinned_limit=GIB, pageable_bandwidth=5e9)
    plan = plan_for(4, machine)
    more = passes(plan, 4000, 4) - passes(plan, 0, 4)
    assert more == pytest.approx(4 * 4000 * KV / 5e9, rel=0.05)


def test_nothing_is_predicted_of_an_unknown_link() -> None:
    unknown = gpu(192 * GIB, link=None)
    assert not plan_for(1, unknown).target_cost(LLAMA2_70B).is_known
    assert plan_for(1, unknown, "device").target_cost(LLAMA2_70B).is_known


# Refusals and limits


def test_the_other_memory_is_offered_where_one_is_too_small() -> None:
    limits = Limits(context_length=131_072, kv="device", parallel=2)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(LONG, None, gpu(24 * GIB), limits)
    assert "--kv host" in caught.value.options
    assert make_plan(LONG, None, gpu(24 * GIB), replace(limits, kv="host")).kv == "host"
    small = gpu(80 * GIB, host=24 * GIB)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(LONG, None, small, replace(limits, kv="host"))
    assert "--kv device" in caught.value.options and make_plan(LONG, None, small, limits).kv == "device"
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(SMALLEST, None, cpu(4 * GIB), Limits(390_000, kv="device"))
    assert not any("--kv" in option for option in caught.value.options)


def test_a_memory_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="kv must be one of device, host, not 'disk'"):
        Limits(kv="disk")
    assert make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(device_memory=8000 * MIB)).kv == "device"
