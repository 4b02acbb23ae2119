"""Several texts in one pass: what they take in the plan, what a pass over them costs, and what is said of it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.sizes import GIB, MIB
from scheduler.errors import DoesNotFitError
from scheduler.plan.memory import GRAPH_LAYER_BYTES, PassShape, workspace_bytes
from scheduler.plan.pass_cost import LAYER_SECONDS, REPLAYED_LAYER_SECONDS, resident_cost
from scheduler.plan.plan import Limits, Plan, make_plan
from scheduler.plan.table import format_plan
from tests.plan_samples import LLAMA2_70B, LLAMA3_8B, LLAMA3_8B_INT4, LLAMA_68M, SMALLEST, TINY, TINY_DRAFT, cpu, gpu

KV = 327_680 + 6144  # bytes per token of both models
CARD = gpu(46 * GIB)


def plan_for(texts: int | None, **limits: int) -> Plan:
    return make_plan(LLAMA2_70B, LLAMA_68M, CARD, Limits(parallel=texts, **limits))


def item(plan: Plan, start: str) -> int:
    """Device bytes of the one item whose name begins so."""
    (found,) = [one.device_bytes for one in plan.items if one.name.startswith(start)]
    return found


@pytest.mark.parametrize("texts", [2, 3, 8])
def test_every_text_has_rows_of_its_own(texts: int) -> None:
    plan = plan_for(texts, context_length=1000)
    rows = 1000 + 512 + 8  # one for padding, up to a multiple of 8
    assert (plan.texts, plan.cache_rows, plan.kv_bytes) == (texts, rows, rows * KV)
    assert item(plan, f"KV caches, {texts} x (1000 + 512) tokens") == texts * rows * KV
    one = plan_for(1, context_length=1000)
    assert (one.cache_rows, one.kv_bytes) == (1000 + 512 + 1, item(one, "KV caches, 1000 + 512 tokens"))


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 200), st.integers(1, 256))
def test_parts_of_a_cache_are_aligned_and_no_longer_than_that_takes(context: int, tree: int, texts: int) -> None:
    rows = PassShape(context, tree, 512, texts=texts).cache_rows
    assert context + tree < rows <= context + tree + (1 if texts == 1 else 8)
    assert texts == 1 or rows % 8 == 0


def test_texts_share_the_nodes_of_one_tree_but_for_a_size_that_the_user_gives_to_each() -> None:
    assert [(plan_for(texts).tree_size, plan_for(texts).nodes) for texts in (1, 4)] == [(512, 512)] * 2
    assert (plan_for(4, tree_size=40).tree_size, plan_for(4, tree_size=40).nodes) == (40, 160)
    many = make_plan(TINY, TINY_DRAFT, cpu(4 * GIB), Limits(parallel=20))
    assert (many.tree_size, many.nodes) == (8, 20), "each has a root at least"
    plain = make_plan(LLAMA2_70B, None, CARD, Limits(parallel=600 // 3, tree_size=64))
    assert (plain.tree_size, plain.nodes, plain.tree_depth) == (1, 200, 0)
    repeated = make_plan(LLAMA2_70B, None, CARD, Limits(parallel=4, repeat_text=True))
    assert (repeated.tree_size, repeated.nodes) == (64, 64)


def test_logits_are_those_of_all_nodes_and_two_masks_span_all_texts() -> None:
    models = (LLAMA2_70B,)
    one, several = PassShape(4096, 31, 512), PassShape(4096, 31, 512, texts=4, nodes=124)
    assert several.cache_rows == one.cache_rows == 4128
    more = workspace_bytes(models, several) - workspace_bytes(models, one)
    assert more == 93 * 32_000 * 4 * 3 + 512 * 2 * 3 * 4128 * 2


@settings(deadline=None)
@given(st.integers(1, 256), st.sampled_from([None, 1, 3, 40]), st.booleans(), st.integers(2, 64))
def test_a_pass_has_a_row_for_every_node(texts: int, tree_size: int | None, drafted: bool, memory: int) -> None:
    machine, draft = cpu(memory * GIB), TINY_DRAFT if drafted else None
    try:
        plan = make_plan(TINY, draft, machine, Limits(parallel=texts, tree_size=tree_size, context_length=32))
    except DoesNotFitError:
        return
    assert plan.rows >= plan.nodes >= max(texts, plan.tree_size) and plan.device_bytes <= plan.device_budget


def test_more_texts_stream_more_and_never_take_less() -> None:
    plans = [plan_for(texts) for texts in range(1, 12)]
    assert [plan.streamed_bytes for plan in plans] == sorted(plan.streamed_bytes for plan in plans)
    assert plans[0].streamed_bytes < plans[-1].streamed_bytes
    assert {plan.context_length for plan in plans} == {4096}


def test_a_recurrent_state_holds_one_text_and_the_plan_says_so() -> None:
    recurrent = replace(LLAMA2_70B, recurrent=True)
    one, several = (make_plan(recurrent, None, CARD, Limits(parallel=texts)) for texts in (1, 4))
    assert several == replace(one, texts_wanted=4) and one.texts == 1
    note = "Texts take turns: a recurrent state holds one, so that 4 cannot share a pass."
    assert note in format_plan(several) and "Texts" not in format_plan(one)


def test_the_table_says_what_texts_take() -> None:
    text = format_plan(plan_for(8))
    assert "Texts: up to 8 share a pass; their KV caches take 12.3 GB, one text's 1.54 GB." in text
    assert "Trees: up to 512 nodes in all; each: up to 512 nodes and 16 levels, checked in one pass." in text
    assert "together with the trees." in text
    assert "KV caches, 8 x (4096 + 512) tokens" in text and max(map(len, text.splitlines())) <= 100
    assert not {"Texts", "Trees"} & set(format_plan(plan_for(1)).replace(":", "").split())


@pytest.mark.parametrize("bad", [0, 257, -1, True, 1.5, "2"])
def test_numbers_of_texts_that_make_no_sense(bad: object) -> None:
    with pytest.raises(ValueError, match="parallel must be"):
        Limits(parallel=bad)  # type: ignore[arg-type]


def test_a_number_left_open_is_one_here() -> None:
    assert plan_for(None) == plan_for(1)


# Refusals


def test_fewer_texts_are_offered_with_what_they_free() -> None:
    limits = Limits(parallel=64, context_length=4096)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(LLAMA2_70B, LLAMA_68M, CARD, limits)
    error = caught.value
    assert "--parallel 16" in error.options
    fewer = make_plan(LLAMA2_70B, LLAMA_68M, CARD, replace(limits, parallel=16))
    assert fewer.texts == 16
    (line,) = [line for line in str(error).splitlines() if line.startswith("  --parallel 16 ")]
    # 48 texts, each with the 64 nodes of the smallest tree, and their part of two masks over at least 64 rows
    freed = 48 * (4096 + 64 + 8) * (KV + 64 * 2 * 2)
    assert f"frees {freed / 1e9:.1f} GB" in line


def test_one_text_is_offered_where_no_more_fit() -> None:
    least = make_plan(SMALLEST, None, cpu(GIB), Limits(1_500_000, context_length=256)).device_bytes
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(SMALLEST, None, cpu(GIB), Limits(least, context_length=256, parallel=2))
    assert "--parallel 1" in caught.value.options and "frees 215 kB" in str(caught.value)
    with pytest.raises(DoesNotFitError) as one:
        make_plan(SMALLEST, None, cpu(GIB), Limits(390_000, context_length=256))
    assert "--parallel" not in str(one.value)


@pytest.mark.parametrize(
    ("texts", "cap", "context", "options"),
    [
        (256, 12 * MIB, 64, ["--parallel 1 --draft none"]),
        (256, 9 * MIB, 1024, ["--parallel 1 --draft none --context-length 64"]),
        (1, 9 * MIB, 1024, ["--draft none --context-length 64"]),
    ],
)
def test_what_is_smaller_is_offered_together_where_nothing_is_enough_alone(
    texts: int, cap: int, context: int, options: list[str]
) -> None:
    limits = Limits(cap, context_length=context, parallel=texts)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(TINY, TINY_DRAFT, cpu(GIB + 16 * MIB), limits)
    assert list(caught.value.options) == options


# Cost


def seconds(texts: int, rows: int, context: int, **machine: float) -> float:
    speed = {"flops": 1e14, "attention_flops": 1e13, "memory_bandwidth": 1e12, **machine}
    known = replace(gpu(400 * GIB), **speed)  # type: ignore[arg-type]
    return resident_cost(LLAMA2_70B, known).seconds(rows, rows, context, texts=texts).total


def test_every_text_attends_to_its_own_context() -> None:
    layers, rows, context = len(LLAMA2_70B.layers), 64, 100_000
    more = seconds(8, rows, context) - seconds(8, rows, 0)
    reading = 8 * context * LLAMA2_70B.kv_bytes_per_token / 1e12
    multiplying = layers * 4 * rows * context * LLAMA2_70B.hidden_size / 1e13
    assert multiplying > reading
    assert more == pytest.approx(multiplying, rel=0.02), "no row attends to another text"
    slow = {"memory_bandwidth": 1e11}
    more = seconds(8, rows, context, **slow) - seconds(8, rows, 0, **slow)
    assert more == pytest.approx(8 * context * LLAMA2_70B.kv_bytes_per_token / 1e11, rel=0.02), "each reads its own"


def test_passes_of_a_few_texts_are_replayed_over_the_keys_of_all() -> None:
    quick = {"flops": 1e18, "attention_flops": 1e18, "memory_bandwidth": 1e18}
    layers = len(LLAMA2_70B.layers)
    assert seconds(1, 8, 0, **quick) == pytest.approx(layers * REPLAYED_LAYER_SECONDS, rel=0.01)
    assert seconds(4, 8, 0, **quick) == pytest.approx(layers * REPLAYED_LAYER_SECONDS, rel=0.01)
    assert seconds(5, 8, 0, **quick) == pytest.approx(layers * LAYER_SECONDS, rel=0.01)
    rows, context = 64, 100_000
    more = seconds(4, rows, context) - seconds(4, rows, 0)
    multiplying = layers * 4 * rows * 4 * context * LLAMA2_70B.hidden_size / 1e13
    gathering = 2 * 4 * context * LLAMA2_70B.kv_bytes_per_token / 1e12
    assert more == pytest.approx(multiplying + gathering, rel=0.02)


def test_graphs_of_several_texts_hold_the_gathered_rows_of_four() -> None:
    whole = gpu(80 * GIB)
    one, several = (make_plan(LLAMA3_8B_INT4, None, whole, Limits(parallel=texts)) for texts in (1, 8))
    assert several.graphs == one.graphs == ("target",)
    keys, rows = several.padding.key_lengths[-1], several.padding.widths[-1]
    assert keys == 4 * several.cache_rows and (several.padding.widths, one.padding.widths) == ((1, 8), (1,))
    masks = rows * keys * (4 * 2 + 2)  # four in 16 bits, and two of booleans
    gathered = keys * LLAMA3_8B_INT4.kv_layer_bytes
    least = masks + gathered + len(LLAMA3_8B_INT4.layers) * GRAPH_LAYER_BYTES  # of the second width
    assert least < item(several, "CUDA graphs") - item(one, "CUDA graphs") < 1.1 * least


def test_what_latent_attention_expands_is_workspace_for_every_row_of_the_cache() -> None:
    latent, shape = replace(LLAMA3_8B, expanded_bytes=448), PassShape(context_length=1000, tree_size=23, rows=64)
    more = workspace_bytes((latent,), shape) - workspace_bytes((LLAMA3_8B,), shape)
    assert more == 448 * shape.cache_rows
    several = replace(shape, texts=3)
    more = workspace_bytes((latent,), several) - workspace_bytes((LLAMA3_8B,), several)
    assert more == 3 * 448 * several.cache_rows
