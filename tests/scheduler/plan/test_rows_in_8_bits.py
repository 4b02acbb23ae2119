"""KV rows in 8 bits: what they take, what a pass over them costs, and what is said of it."""

from dataclasses import replace

import pytest

from loaders.sizes import GIB
from scheduler.errors import DoesNotFitError
from scheduler.plan.plan import Limits, Plan, make_plan
from scheduler.plan.table import format_plan
from tests.plan_samples import LLAMA2_70B, LLAMA3_8B, LLAMA_68M, gpu

TARGET = replace(LLAMA2_70B, kv_heads=2 * 8 * 80)  # heads of 128 values, in bfloat16
SMALLER = TARGET.with_rows_in_8_bits()
KV, DRAFT_KV = TARGET.kv_bytes_per_token, LLAMA_68M.kv_bytes_per_token


def plan_for(bits: int | None, texts: int = 1, context: int = 4096, **limits: str) -> Plan:
    spec = SMALLER if bits else TARGET
    return make_plan(spec, LLAMA_68M, gpu(24 * GIB), Limits(parallel=texts, context_length=context, **limits))


def item(plan: Plan, start: str) -> tuple[int, int]:
    """Device and host bytes of the one item whose name begins so."""
    (found,) = [(one.device_bytes, one.host_bytes) for one in plan.items if one.name.startswith(start)]
    return found


def test_a_row_is_a_byte_for_each_value_and_a_scale_for_each_head() -> None:
    assert SMALLER.kv_bytes_per_token == KV // 2 + 2 * TARGET.kv_heads == KV * (128 + 2) // 256
    assert SMALLER.kv_layer_bytes == SMALLER.kv_bytes_per_token // 80
    assert (SMALLER.kv_bits, TARGET.kv_bits) == (8, None) and SMALLER.with_rows_in_8_bits() is SMALLER
    assert SMALLER.computed_kv_bytes_per_token == TARGET.computed_kv_bytes_per_token == KV
    in_float32 = replace(TARGET, dtype="float32", kv_bytes_per_token=2 * KV).with_rows_in_8_bits()
    assert in_float32.kv_bytes_per_token == KV // 2 + 4 * TARGET.kv_heads
    uneven = replace(TARGET, largest_kv_bytes=3 * KV // 80).with_rows_in_8_bits()
    assert uneven.kv_layer_bytes == 3 * SMALLER.kv_layer_bytes


@pytest.mark.parametrize("texts", [1, 4])
def test_the_targets_rows_are_counted_and_one_layers_as_they_are_read(texts: int) -> None:
    plan, usual = plan_for(8, texts), plan_for(None, texts)
    rows = plan.texts * plan.cache_rows
    assert item(plan, "KV caches, ") == (rows * (SMALLER.kv_bytes_per_token + DRAFT_KV), 0)
    assert item(plan, "the KV rows of a layer, dequantized") == (rows * KV // 80, 0)
    assert item(usual, "KV caches, ") == (rows * (KV + DRAFT_KV), 0)
    assert not any("dequantized" in one.name for one in usual.items)
    assert plan.kv_bytes < 0.53 * usual.kv_bytes and (plan.kv_bits, usual.kv_bits) == (8, None)


def test_layers_take_the_memory_that_is_left() -> None:
    plan, usual = plan_for(8, 4), plan_for(None, 4)
    assert plan.streamed_bytes < usual.streamed_bytes and plan.device_bytes <= plan.device_budget


def test_rows_in_host_memory_travel_in_8_bits() -> None:
    plan, usual = plan_for(8, kv="host"), plan_for(None, kv="host")
    assert plan.kv_token_bytes == SMALLER.kv_bytes_per_token and usual.kv_token_bytes == KV
    assert item(plan, "KV caches, ")[1] == plan.cache_rows * SMALLER.kv_bytes_per_token
    assert item(plan, "the KV rows of two layers") == (2 * plan.cache_rows * SMALLER.kv_layer_bytes, 0)
    more, without = (
        one.target_cost(spec).seconds(1, 1, 4000).total - one.target_cost(spec).seconds(1, 1, 0).total
        for one, spec in ((plan, SMALLER), (usual, TARGET))
    )
    assert more == pytest.approx(without * 130 / 256, rel=0.1)


def test_dequantizing_takes_memory_bandwidth() -> None:
    machine = replace(gpu(192 * GIB), flops=1e15, attention_flops=1e15, memory_bandwidth=1e12)
    plans = [make_plan(spec, None, machine, Limits(context_length=4096)) for spec in (TARGET, SMALLER)]
    usual, more = (
        plan.target_cost(spec).seconds(1, 1, 4000).total - plan.target_cost(spec).seconds(1, 1, 0).total
        for plan, spec in zip(plans, (TARGET, SMALLER))
    )
    assert usual == pytest.approx(4000 * KV / 1e12, rel=0.1)
    assert more == pytest.approx(4000 * (4 * KV + SMALLER.kv_bytes_per_token) / 1e12, rel=0.1)


def test_the_table_says_so() -> None:
    text = format_plan(plan_for(8, 8))
    assert "KV rows are kept in 8 bits: the text is that of a slightly different model." in text
    assert "KV caches, 8 x (4096 + 512) tokens, 8-bit " in text and max(map(len, text.splitlines())) <= 100
    assert "8 bits" not in format_plan(plan_for(None, 8)) and plan_for(8).as_dict()["kv_bits"] == 8


def test_it_is_offered_where_rows_do_not_fit() -> None:
    long = replace(LLAMA3_8B, max_positions=131_072, kv_heads=2 * 8 * 32)
    limits = Limits(context_length=131_072, kv="device")
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(long, None, gpu(16 * GIB), limits)
    assert "--kv-bits 8" in caught.value.options
    assert make_plan(long.with_rows_in_8_bits(), None, gpu(16 * GIB), limits).kv_bits == 8
    for spec in (replace(long, shares_kv=True), replace(long, kv_heads=0), long.with_rows_in_8_bits()):
        with pytest.raises(DoesNotFitError) as caught:
            make_plan(spec, None, gpu(12 * GIB), replace(limits, parallel=2))
        assert not any("--kv-bits" in option for option in caught.value.options)
