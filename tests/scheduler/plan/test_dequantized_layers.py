"""Packed layers that are decoded for good: as many as memory is left for, and none where layers stream."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loaders.sizes import GIB
from scheduler.plan.dequantized_layers import NONE_DECODED, DecodedLayers
from scheduler.plan.plan import Limits, Plan, make_plan
from tests.plan_samples import LLAMA3_8B, LLAMA3_8B_INT4, LLAMA3_70B_INT4, LLAMA_68M, gpu, packed

DRAFTING = LLAMA3_8B.layers[0].nbytes - LLAMA3_8B_INT4.layers[0].nbytes
DRAFT = replace(LLAMA_68M, name="llama-68m-int4", layers=tuple(packed(layer, 5_000_000) for layer in LLAMA_68M.layers))
SHORT = Limits(context_length=1024)


def items(plan: Plan) -> dict[str, int]:
    return {item.name: item.device_bytes for item in plan.items}


def test_all_layers_where_there_is_memory():
    plan = make_plan(LLAMA3_8B_INT4, None, gpu(24 * GIB), SHORT)
    assert plan.decoded == DecodedLayers(32, 0)
    assert items(plan)["target, 32 decoded layers"] == 32 * LLAMA3_8B.layers[0].nbytes
    assert items(plan)["a packed layer, while it is decoded"] == 113_000_000
    assert plan.weight_bytes == LLAMA3_8B_INT4.embeddings_and_head_bytes + 32 * 113_000_000, "what the files hold"


@given(st.integers(0, 34 * DRAFTING))
@example(113_000_000 + 31 * DRAFTING)
def test_as_many_layers_as_fit(room):
    """More memory never decodes fewer, and never more than it holds."""
    least = make_plan(LLAMA3_8B_INT4, None, gpu(24 * GIB), SHORT).device_bytes - 32 * DRAFTING - 113_000_000
    plan = make_plan(LLAMA3_8B_INT4, None, gpu(24 * GIB), replace(SHORT, device_memory=least + room))
    assert plan.decoded == DecodedLayers(min(32, max(0, room - 113_000_000) // DRAFTING), 0)
    assert plan.device_bytes <= plan.device_budget and plan.slots == 0
    packed = 32 - plan.decoded.target
    if 0 < packed < 32:
        assert items(plan)[f"target, {packed} resident layer{'s' * (packed > 1)}"] == packed * 113_000_000


def test_the_draft_comes_first():
    limits = replace(SHORT, tree_size=8)
    everything = make_plan(LLAMA3_8B_INT4, DRAFT, gpu(24 * GIB), limits)
    assert everything.decoded == DecodedLayers(32, 2)
    drafting = sum(layer.decoded.nbytes - layer.nbytes for layer in DRAFT.layers)
    tight = everything.device_bytes - 32 * DRAFTING
    assert make_plan(LLAMA3_8B_INT4, DRAFT, gpu(24 * GIB), replace(limits, device_memory=tight)).decoded.draft == 2
    tighter = replace(limits, device_memory=tight - drafting)
    assert make_plan(LLAMA3_8B_INT4, DRAFT, gpu(24 * GIB), tighter).decoded == NONE_DECODED


@pytest.mark.parametrize("draft", [None, DRAFT])
def test_none_where_layers_stream(draft):
    plan = make_plan(LLAMA3_70B_INT4, draft, gpu(24 * GIB), SHORT)
    assert plan.slots and plan.decoded == NONE_DECODED


def test_none_where_nothing_is_packed():
    plan = make_plan(LLAMA3_8B, LLAMA_68M, gpu(48 * GIB), SHORT)
    assert plan.slots == 0 and plan.decoded == NONE_DECODED


def test_a_layer_that_is_not_packed_is_passed_over():
    """Some checkpoints leave their first or last layers as they are."""
    layers = (LLAMA3_8B.layers[0], *LLAMA3_8B_INT4.layers[1:-1], LLAMA3_8B.layers[-1])
    plan = make_plan(replace(LLAMA3_8B_INT4, layers=layers), None, gpu(24 * GIB), SHORT)
    assert plan.decoded == DecodedLayers(31, 0)


def test_decoded_layers_make_quicker_passes():
    machine = replace(gpu(24 * GIB), flops=1e14, memory_bandwidth=1e12)
    plan = make_plan(LLAMA3_8B_INT4, None, machine, SHORT)
    before_use = replace(plan, decoded=NONE_DECODED)
    quick, slow = (one.target_cost(LLAMA3_8B_INT4).seconds(1, 1, 0).total for one in (plan, before_use))
    per_layer = slow - quick
    assert per_layer == pytest.approx(32 * (113_000_000 + LLAMA3_8B.layers[0].nbytes) / 1e12, rel=1e-3)
