"""The planner: what it promises for every machine, and the figures of known models on known cards."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.checkpoint.spec import LayerSpec, ModelSpec
from loaders.errors import UnsupportedModelError
from loaders.io.direct import CHUNK_BYTES, DISK_BLOCK, THREADS
from loaders.sizes import GIB, MIB, parse_size
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.memory import PassShape, workspace_bytes
from scheduler.plan.placement import spread, wanted_slots
from scheduler.plan.plan import Limits, Plan, Tier, make_plan
from scheduler.plan.staging import BOUNCE_BYTES, LOADING_THREADS, SPAN_BYTES
from scheduler.plan.table import format_plan
from tests.plan_samples import (
    LLAMA2_70B,
    LLAMA3_8B_INT4,
    LLAMA3_70B,
    LLAMA3_70B_INT4,
    LLAMA_68M,
    SMALLEST,
    TINY,
    TINY_DRAFT,
    TINY_ROWS,
    cpu,
    gpu,
    model,
)

pytestmark = pytest.mark.slow


def residents(plan: Plan) -> int:
    return plan.tiers.count(Tier.DEVICE)


# What holds for every machine


UNIT_SIZES = st.lists(st.integers(1, 60).map(lambda size: size * 4 * MIB), min_size=1, max_size=24)
EQUAL_UNITS = st.tuples(st.integers(1, 100 * MIB), st.integers(1, 48)).map(lambda pair: [pair[0]] * pair[1])
ANY_MODEL = st.one_of(UNIT_SIZES, EQUAL_UNITS)
BUDGETS = st.integers(0, 8 * GIB)
SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_heads": 8}


def check(plan: Plan, spec: ModelSpec) -> None:
    """What every plan must satisfy."""
    assert len(plan.tiers) == len(spec.layers)
    assert plan.device_bytes <= plan.device_budget and plan.host_bytes <= plan.host_budget
    streamed = [layer for layer, tier in zip(spec.layers, plan.tiers, strict=True) if tier is not Tier.DEVICE]
    assert plan.slot_bytes == max((layer.nbytes for layer in streamed), default=0)
    assert plan.slots in ((2, 3) if streamed else (0,))
    assert plan.streamed_bytes == sum(layer.nbytes for layer in streamed)
    assert plan.tree_size <= plan.rows and plan.cache_rows == plan.context_length + plan.tree_size + 1
    assert plan.context_length <= plan.context_wanted
    if plan.device == "cpu":
        assert Tier.HOST not in plan.tiers and plan.host_bytes == 0


@settings(deadline=None)
@given(ANY_MODEL, BUDGETS, BUDGETS, st.booleans())
def test_every_plan_keeps_to_its_budgets(sizes: list[int], device: int, host: int, with_draft: bool) -> None:
    spec = model("any", sizes, 10 * MIB, 4096, **SMALL)
    draft = TINY_DRAFT if with_draft else None
    for machine in (gpu(16 * GIB, 16 * GIB, 25e9, 2e9), cpu(16 * GIB, 2e9)):
        try:
            plan = make_plan(spec, draft, machine, Limits(device_memory=device, host_memory=host))
        except DoesNotFitError as error:
            assert error.needed > error.available and error.available in (device, host)
            continue
        check(plan, spec)
        assert plan.device_budget <= device and (plan.device == "cuda" or plan.device_budget <= host)


@settings(deadline=None)
@given(ANY_MODEL, BUDGETS, BUDGETS, st.booleans())
def test_more_memory_never_streams_more(sizes: list[int], budget: int, more: int, on_gpu: bool) -> None:
    """For one context and tree; but for one layer, where the larger memory reads longer prompts in one pass."""
    spec = model("any", sizes, 10 * MIB, 4096, **SMALL)
    machine, limits = gpu(32 * GIB) if on_gpu else cpu(32 * GIB), Limits(budget, context_length=32, tree_size=32)
    try:
        plan = make_plan(spec, TINY_DRAFT, machine, limits)
    except DoesNotFitError:
        return
    larger = make_plan(spec, TINY_DRAFT, machine, replace(limits, device_memory=budget + more))
    longer_prompts = larger.rows > plan.rows
    assert larger.streamed_bytes <= plan.streamed_bytes + longer_prompts * max(layer.nbytes for layer in spec.layers)
    assert larger.rows >= plan.rows or not larger.slots


@settings(deadline=None)
@given(ANY_MODEL, BUDGETS, BUDGETS, st.booleans())
def test_more_memory_never_shortens_the_context(sizes: list[int], budget: int, more: int, on_gpu: bool) -> None:
    """It may stream more for a longer one, but never for the same shape of pass."""
    spec = model("any", sizes, 10 * MIB, 4096, **SMALL)
    machine = gpu(32 * GIB) if on_gpu else cpu(32 * GIB)
    try:
        plan = make_plan(spec, TINY_DRAFT, machine, Limits(budget))
    except DoesNotFitError:
        return
    larger = make_plan(spec, TINY_DRAFT, machine, Limits(budget + more))
    assert larger.context_length >= plan.context_length and larger.read_chunk_bytes == plan.read_chunk_bytes
    if (larger.cache_rows, larger.rows) == (plan.cache_rows, plan.rows):
        assert larger.streamed_bytes <= plan.streamed_bytes


@settings(deadline=None)
@given(ANY_MODEL, st.integers(0, 64 * MIB), st.sampled_from([None, 100, 4096]))
def test_what_is_said_to_be_needed_is_enough_and_no_more(sizes: list[int], budget: int, context: int | None) -> None:
    spec, machine = model("any", sizes, 10 * MIB, 4096, **SMALL), cpu(32 * GIB)
    try:
        make_plan(spec, TINY_DRAFT, machine, Limits(budget, context_length=context))
    except DoesNotFitError as error:
        make_plan(spec, TINY_DRAFT, machine, Limits(error.needed, context_length=context))
        with pytest.raises(DoesNotFitError):
            make_plan(spec, TINY_DRAFT, machine, Limits(error.needed - 1, context_length=context))


@settings(deadline=None)
@given(ANY_MODEL, BUDGETS, BUDGETS)
def test_more_host_memory_never_reads_more_from_disk(sizes: list[int], budget: int, more: int) -> None:
    spec = model("any", sizes, 10 * MIB, 4096, **SMALL)
    machine = gpu(600 * MIB + 300 * MIB, 64 * GIB, disk=1e9)
    try:
        plan = make_plan(spec, None, machine, Limits(host_memory=budget))
    except DoesNotFitError:
        return
    assert make_plan(spec, None, machine, Limits(host_memory=budget + more)).disk_bytes <= plan.disk_bytes


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_residents_are_spread_evenly(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    places = [place for place, marked in enumerate(spread(count, total)) if marked]
    gaps = [after - before for before, after in zip(places, [*places[1:], places[0] + total], strict=True)]
    assert len(places) == count and max(gaps) <= -(-total // count) and min(gaps) >= total // count


@settings(deadline=None)
@given(st.integers(1, 48 * MIB), st.sampled_from([None, 64, 1024]), st.sampled_from([None, 256]))
def test_whatever_is_suggested_works(budget: int, context: int | None, tree_size: int | None) -> None:
    machine, limits = cpu(8 * GIB), Limits(budget, context_length=context, tree_size=tree_size)
    try:
        make_plan(TINY, TINY_DRAFT, machine, limits)
    except DoesNotFitError as error:
        assert error.options
        for flags in error.options:
            make_plan(TINY, *apply(flags, TINY_DRAFT, machine, limits))


def apply(flags: str, draft: ModelSpec | None, machine: Machine, limits: Limits) -> tuple:
    """Read the flags of an option as the command line would."""
    words = flags.split()
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == "--draft":
            draft = None
        elif name == "--device":
            machine = machine.without_gpu()
        elif name != "--dtype":
            limits = replace(limits, **{name.strip("-").replace("-", "_"): parse_size(value)})
    return draft, machine, limits


# Known models on known cards: resident layers and seconds per pass beside an 8B int4 draft


@pytest.mark.parametrize(
    ("spec", "memory", "link", "layers", "seconds"),
    [
        (LLAMA3_70B, 46 * GIB, 25e9, 18, 4.24),  # L40
        (LLAMA3_70B, 24 * GIB, 25e9, 5, 5.13),  # RTX 4090
        (LLAMA3_70B, 32 * GIB, 52e9, 9, 2.34),  # RTX 5090
        (LLAMA3_70B_INT4, 24 * GIB, 25e9, 25, 0.98),  # RTX 4090
        (LLAMA3_70B_INT4, 32 * GIB, 52e9, 42, 0.32),  # RTX 5090
    ],
)
def test_resident_layers_of_a_70b(spec: ModelSpec, memory: int, link: float, layers: int, seconds: float) -> None:
    plan = make_plan(spec, LLAMA3_8B_INT4, gpu(memory, link=link))
    assert residents(plan) == pytest.approx(layers, abs=max(2, layers // 5))
    assert plan.seconds_per_pass == pytest.approx(seconds, rel=0.15)
    assert plan.slots == 2 and plan.disk_bytes == 0


def test_a_70b_without_a_draft() -> None:
    card = make_plan(LLAMA2_70B, None, gpu(24 * GIB))  # RTX 3090, 4090
    assert residents(card) in (10, 11) and (card.tree_size, card.tree_depth) == (1, 0)
    assert residents(make_plan(LLAMA2_70B, None, gpu(46 * GIB))) in (22, 23, 24)
    assert residents(make_plan(LLAMA2_70B, None, gpu(180 * GIB))) == 80


def test_items_account_for_everything() -> None:
    plan = make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB))
    items = {item.name: item for item in plan.items}
    layers = residents(plan)
    assert items[f"target, {layers} resident layers"].device_bytes == layers * 1_711_309_824
    streamed = items[f"target, {80 - layers} streamed layers (2 slots)"]
    assert streamed.device_bytes == 2 * 1_711_309_824 and streamed.host_bytes == plan.streamed_bytes
    assert items["embeddings, norm and head"].device_bytes == LLAMA2_70B.embeddings_and_head_bytes
    assert items["draft llama-68m (bfloat16)"].device_bytes == 136_000_000
    assert items["KV caches, 4096 + 512 tokens"].device_bytes == 4609 * (327_680 + 6144)
    assert items[f"workspace, {2048 + 511} rows"].device_bytes == plan.workspace_bytes > 512 * 32_000 * 4
    assert 4_000_000 < items["CUDA graphs, 128 rows"].device_bytes < 60_000_000  # of the small draft alone
    assert plan.cache_rows == 4096 + 512 + 1


def test_what_lies_on_a_gpu_whole_is_replayed_as_cuda_graphs() -> None:
    whole, small = gpu(192 * GIB), gpu(24 * GIB)
    assert make_plan(LLAMA2_70B, LLAMA_68M, small).graphs == ("draft",)
    assert make_plan(LLAMA2_70B, None, small).graphs == ()
    assert make_plan(LLAMA2_70B, LLAMA_68M, whole).graphs == ("target", "draft")
    assert make_plan(LLAMA2_70B, None, whole).graphs == ("target",)
    assert make_plan(replace(LLAMA2_70B, recurrent=True), None, whole).graphs == ()
    assert make_plan(TINY, TINY_DRAFT, cpu(64 * GIB)).graphs == ()
    with_graphs, without = (make_plan(LLAMA2_70B, draft, small) for draft in (LLAMA_68M, None))
    assert ["CUDA graphs" in item.name for item in with_graphs.items].count(True) == 1
    assert not any("CUDA graphs" in item.name for item in without.items)


def test_written_out_attention_needs_room_for_scores() -> None:
    written_out = replace(LLAMA2_70B, model_type="gemma2")
    plain, more = (workspace_bytes((spec,), PassShape(4096, 1, 512)) for spec in (LLAMA2_70B, written_out))
    assert more - plain == 64 * 512 * (4096 + 2) * 12
    assert make_plan(written_out, None, gpu(46 * GIB)).rows == 512 < make_plan(LLAMA2_70B, None, gpu(46 * GIB)).rows


# Tiers


def test_host_memory_first_then_disk() -> None:
    plan = make_plan(LLAMA2_70B, None, gpu(24 * GIB, disk=2e9), Limits(host_memory=32 * GIB))
    on_host, on_disk = plan.tiers.count(Tier.HOST), plan.tiers.count(Tier.DISK)
    assert on_host in (17, 18) and residents(plan) + on_host + on_disk == 80
    # the disk is read ahead while layers from host memory cross the link: it alone is waited for
    assert plan.seconds_per_pass == pytest.approx(on_disk * 1_711_309_824 / 2e9)
    assert plan.host_bytes > (on_host + 2) * 1_711_309_824 > 30e9  # two are read ahead beside those that stay


def test_room_for_reading_ahead_is_kept_only_where_something_is_read() -> None:
    """One byte less than all layers need puts three on disk: the one that is short, and two for what is read."""
    layers = 80 * 1_711_309_824
    whole = make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(host_memory=400 * GIB))
    needed = whole.host_bytes
    assert Tier.DISK not in whole.tiers and needed < layers
    assert make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(host_memory=needed)).tiers == whole.tiers
    less = make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(host_memory=needed - 1))
    assert less.tiers.count(Tier.DISK) == 3 and less.host_bytes <= needed - 1


def test_memory_that_cannot_be_pinned_is_named_and_costs_what_the_slower_way_takes() -> None:
    machine = replace(gpu(24 * GIB), pinned_limit=4 * GIB, pageable_bandwidth=8e9)
    plan = make_plan(LLAMA2_70B, None, machine)
    on_host = plan.tiers.count(Tier.HOST)
    assert plan.pageable_bytes == (on_host - 2) * 1_711_309_824  # 4 GiB hold two layers and what moves them
    slow, fast = plan.pageable_bytes / 8e9, 2 * 1_711_309_824 / 25e9
    assert plan.seconds_per_pass == pytest.approx(slow + fast, rel=0.01)
    assert make_plan(LLAMA2_70B, None, replace(machine, pinned_limit=None)).pageable_bytes == 0
    assert "No more than 4.29 GB can be pinned here" in format_plan(plan) and "8.00 GB/s" in format_plan(plan)


def test_without_a_gpu_the_rest_is_read_from_disk() -> None:
    plan = make_plan(LLAMA2_70B, LLAMA_68M, cpu(64 * GIB, disk=2e9))
    assert set(plan.tiers) == {Tier.DEVICE, Tier.DISK} and plan.host_budget == 0
    assert plan.seconds_per_pass == pytest.approx(plan.disk_bytes / 2e9) and plan.link_bandwidth == 2e9
    assert (plan.tree_size, plan.tree_depth, plan.rows) == (64, 10, 2048 + 63)


def test_disk_bytes_are_counted_as_stored() -> None:
    stored = replace(TINY, layers=tuple(replace(layer, disk_bytes=layer.nbytes // 2) for layer in TINY.layers))
    plan = make_plan(stored, None, cpu(GIB), replace(TINY_ROWS, device_memory=12 * MIB))
    assert plan.slots and plan.streamed_bytes == plan.tiers.count(Tier.DISK) * 2_150_400 // 2


def test_unknown_bandwidths_predict_nothing() -> None:
    assert make_plan(LLAMA2_70B, None, gpu(24 * GIB, link=None)).seconds_per_pass is None
    assert make_plan(LLAMA2_70B, None, gpu(24 * GIB, host=32 * GIB)).seconds_per_pass is None
    assert make_plan(LLAMA2_70B, None, cpu(64 * GIB)).seconds_per_pass is None


def test_three_slots_for_small_or_uneven_units_and_two_where_three_do_not_fit() -> None:
    assert wanted_slots(LLAMA2_70B.layers) == 2 and wanted_slots(TINY.layers) == 3
    mixture = [LayerSpec("", size * GIB, 0) for size in (1, 5, 1, 5)]
    few_dense_layers_first = [LayerSpec("", size * GIB, 0) for size in (1, 1, 1, *[5] * 58)]
    assert wanted_slots(mixture) == 3 and wanted_slots(few_dense_layers_first) == 2
    tight = make_plan(TINY, None, cpu(GIB), replace(TINY_ROWS, device_memory=12 * MIB))
    assert tight.slots == 3
    needed = tight.device_bytes - residents(tight) * 2_150_400 - 2_150_400
    assert make_plan(TINY, None, cpu(GIB), replace(TINY_ROWS, device_memory=needed)).slots == 2
    with pytest.raises(DoesNotFitError):
        make_plan(TINY, None, cpu(GIB), replace(TINY_ROWS, device_memory=needed - 1))


# Budgets


def test_margins_are_kept_and_caps_are_obeyed() -> None:
    spec = TINY
    usable = int(20 * GIB * 0.95) - 600 * MIB
    assert make_plan(spec, None, gpu(20 * GIB)).device_budget == usable
    assert make_plan(spec, None, gpu(20 * GIB, host=100 * GIB)).host_budget == 94 * GIB
    for cap in (20 * GIB, 40 * GIB):  # never more than without a cap
        assert make_plan(spec, None, gpu(20 * GIB), Limits(device_memory=cap)).device_budget == usable
    assert make_plan(spec, None, gpu(20 * GIB), Limits(device_memory=9 * GIB)).device_budget == 9 * GIB
    assert make_plan(spec, None, cpu(20 * GIB)).device_budget == 18 * GIB
    assert make_plan(spec, None, cpu(20 * GIB), Limits(device_memory=30 * GIB)).device_budget == 20 * GIB
    assert make_plan(spec, None, cpu(20 * GIB), Limits(9 * GIB, host_memory=8 * GIB)).device_budget == 8 * GIB


# Trees and contexts, and rows to read them with


def test_default_trees() -> None:
    sizes = [
        (make_plan(TINY, TINY_DRAFT, cpu(4 * GIB)), 8, 4),
        (make_plan(TINY, TINY_DRAFT, gpu(4 * GIB)), 64, 10),
        (make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB)), 512, 16),
        (make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB), Limits(tree_size=768)), 768, 18),
        (make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB), Limits(tree_size=8, tree_depth=20)), 8, 7),
        (make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(tree_size=768, tree_depth=5)), 1, 0),
    ]
    for plan, size, depth in sizes:
        assert (plan.tree_size, plan.tree_depth) == (size, depth)
        assert plan.rows == (2048 + size - 1 if plan.slots else 512)


def test_a_long_prompt_takes_one_stream_of_the_weights_for_at_most_a_layer() -> None:
    for cap in range(8 * GIB, 46 * GIB, GIB):
        long, short = (make_plan(LLAMA2_70B, LLAMA_68M, gpu(cap), Limits(context_length=n)) for n in (4096, 1024))
        assert long.rows == 2048 + long.tree_size - 1 and short.rows == 1024 + short.tree_size - 1
        shape = PassShape(4096, long.tree_size, 512)
        assert long.workspace_bytes - workspace_bytes((LLAMA2_70B, LLAMA_68M), shape) <= 1_711_309_824 / 2


def test_short_layers_leave_no_room_for_long_prompts() -> None:
    assert make_plan(TINY, TINY_DRAFT, cpu(4 * GIB), Limits(device_memory=19 * MIB)).rows <= 512


def test_a_default_tree_shrinks_before_the_planner_gives_up_but_a_given_one_does_not() -> None:
    wide, fixed = replace(LLAMA3_70B, layers=LLAMA3_70B.layers[:10]), Limits(context_length=4096, tree_size=512)
    fits_512 = make_plan(wide, LLAMA_68M, gpu(24 * GIB), fixed)
    least = workspace_bytes((wide, LLAMA_68M), PassShape(4096, 512, 512)) - fits_512.workspace_bytes - 100 * MIB
    capped = replace(fixed, device_memory=fits_512.device_bytes - residents(fits_512) * 1_711_309_824 + least)
    assert make_plan(wide, LLAMA_68M, gpu(24 * GIB), replace(capped, tree_size=None)).tree_size == 256
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(wide, LLAMA_68M, gpu(24 * GIB), capped)
    assert "--tree-size 256" in caught.value.options


def test_rows_shrink_before_the_tree_and_the_tree_before_the_context() -> None:
    caps = range(45 * GIB // 10, 85 * GIB // 10, GIB // 10)
    plans = [make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB), Limits(cap)) for cap in caps]
    shapes = [(plan.context_length, plan.tree_size, plan.rows) for plan in plans]
    assert shapes == sorted(shapes) and (shapes[0], shapes[-1]) == ((256, 64, 128), (4096, 512, 2559))
    assert {(4096, 128, 256), (4096, 256, 256), (4096, 256, 511)} < set(shapes)


def test_with_more_memory_the_default_context_grows_to_the_full() -> None:
    plans = [make_plan(SMALLEST, None, cpu(4 * GIB), Limits(cap)) for cap in range(1_450_000, 10_000_000, 50_000)]
    lengths = [plan.context_length for plan in plans]
    assert lengths == sorted(lengths) and list(dict.fromkeys(lengths)) == [256, 512, 1024, 2048, 4096]
    assert {plan.context_wanted for plan in plans} == {4096}


def test_context_defaults_and_bounds() -> None:
    long = replace(LLAMA2_70B, max_positions=131_072)
    assert make_plan(long, None, gpu(24 * GIB)).context_length == 4096
    assert make_plan(long, None, gpu(24 * GIB), Limits(context_length=32_768)).context_length == 32_768
    assert make_plan(TINY, None, cpu(4 * GIB)).context_length == 1024
    assert make_plan(TINY, None, cpu(4 * GIB), Limits(context_length=100)).rows == 100
    with pytest.raises(ValueError, match="a context of 2048 tokens is more than the 1024 positions tiny was made for"):
        make_plan(TINY, None, cpu(GIB), Limits(context_length=2048))


@pytest.mark.parametrize(
    "bad", [{"tree_size": 0}, {"tree_depth": 0}, {"tree_size": 2.5}, {"context_length": -1}, {"device_memory": -1}]
)
def test_limits_that_make_no_sense(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)


def test_a_recurrent_model_streams_but_takes_no_draft() -> None:
    recurrent = replace(LLAMA2_70B, recurrent=True)
    plan = make_plan(recurrent, None, gpu(24 * GIB))
    assert plan.slots == 2 and plan.rows == plan.context_length == 4096  # its prompts are read in one pass
    with pytest.raises(UnsupportedModelError, match="--draft none"):
        make_plan(recurrent, LLAMA_68M, gpu(24 * GIB))


@pytest.mark.parametrize("context", [None, 256, 100])
def test_a_model_of_2_mb_streams_under_a_cap_below_its_size(context: int | None) -> None:
    limits = Limits(1_500_000, context_length=context)
    assert limits.device_memory < SMALLEST.disk_bytes == 2_000_000
    plan = make_plan(SMALLEST, None, cpu(4 * GIB), limits)
    check(plan, SMALLEST)
    assert plan.slots and plan.disk_bytes and plan.context_length == (context or 256)


@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [
        ([1000] * 8, DISK_BLOCK),
        ([2_150_400] * 6, 131_072),  # half a layer for all threads together, in whole blocks
        ([1000, 2_150_400], 131_072),
        ([2 * THREADS * CHUNK_BYTES - 1] * 2, CHUNK_BYTES - DISK_BLOCK),
        ([2 * THREADS * CHUNK_BYTES] * 2, CHUNK_BYTES),
        ([1_711_309_824] * 80, CHUNK_BYTES),
    ],
)
def test_read_buffers_follow_the_largest_layer_whatever_the_budget(sizes: list[int], chunk: int) -> None:
    spec = model("any", sizes, 10 * MIB, 4096, **SMALL)
    staging = BOUNCE_BYTES + LOADING_THREADS * min(SPAN_BYTES, max(*sizes, 10 * MIB))
    for machine, beside in ((cpu(8 * GIB), 0), (cpu(512 * GIB), 0), (gpu(8 * GIB), staging), (gpu(80 * GIB), staging)):
        plan = make_plan(spec, None, machine)
        (buffers,) = [item for item in plan.items if item.name == "read buffers"]
        assert plan.read_chunk_bytes == chunk
        assert buffers.device_bytes + buffers.host_bytes == THREADS * (chunk + 2 * DISK_BLOCK) + beside


# Refusals


@pytest.mark.parametrize(
    ("spec", "draft", "machine", "limits", "options"),
    [
        (LLAMA2_70B, LLAMA_68M, gpu(24 * GIB), Limits(4 * GIB), ["--device-memory 4.5GiB"]),
        (
            LLAMA2_70B,
            LLAMA_68M,
            gpu(24 * GIB),
            Limits(5 * GIB, context_length=4096),
            ["--device-memory 5.7GiB", "--context-length 1024"],
        ),
        (LLAMA3_70B, LLAMA3_8B_INT4, gpu(12 * GIB), Limits(), ["--draft none"]),
        (LLAMA3_70B, LLAMA3_8B_INT4, gpu(6 * GIB), Limits(), ["--device cpu --dtype bfloat16"]),
        (LLAMA2_70B, None, gpu(24 * GIB), Limits(host_memory=GIB), ["--host-memory 3.4GiB"]),
        (TINY, TINY_DRAFT, cpu(3 * GIB), Limits(MIB, MIB), ["--device-memory 14.8MiB --host-memory 14.8MiB"]),
        (SMALLEST, None, cpu(4 * GIB), Limits(390_000), ["--device-memory 1.4MiB"]),
        (SMALLEST, None, cpu(4 * GIB), Limits(1_300_000), ["--device-memory 1.4MiB", "--context-length 128"]),
    ],
)
def test_refusals_itemise_and_their_options_work(
    spec: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits, options: list[str]
) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(spec, draft, machine, limits)
    error = caught.value
    assert list(error.options) == options
    for flags in options:
        check(make_plan(spec, *apply(flags, draft, machine, limits)), spec)
    assert re.search(r"does not fit: at least [\d.]+ .?B of .*memory needed, [\d.]+ .?B may be used", str(error))
    assert all(f"\n  {flags}" in str(error) for flags in options)
    assert "\n  read buffers " in str(error) or "\n  target, " in str(error)
    assert max(map(len, str(error).splitlines())) <= 120


def test_a_machine_too_small_for_anything_is_told_so() -> None:
    with pytest.raises(DoesNotFitError, match="needs more memory") as caught:
        make_plan(LLAMA2_70B, LLAMA_68M, cpu(4 * GIB))
    assert caught.value.options == ()


def test_the_plan_can_be_written_as_json() -> None:
    plan = make_plan(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB, host=64 * GIB))
    read = json.loads(json.dumps(plan.as_dict()))
    assert read["tiers"].count("device") == residents(plan) and read["device"] == "cuda"
    assert sum(item["device_bytes"] for item in read["items"]) == read["device_bytes"] == plan.device_bytes
    assert read["machine"]["host_total"] == 64 * GIB and read["seconds_per_pass"] is None


def test_planning_needs_no_torch() -> None:
    command = "import sys, scheduler.machine.machine, scheduler.plan.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
