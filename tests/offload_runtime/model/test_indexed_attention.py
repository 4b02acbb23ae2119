"""Attention that selects rows by an index: every node of a tree has its own selection, among its own ancestors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from loaders.checkpoint import indexed
from loaders.checkpoint.indexed import can_index
from loaders.checkpoint.read_spec import read_spec
from loaders.errors import UnsupportedModelError
from offload_runtime import OffloadRuntime
from offload_runtime.model import attention
from offload_runtime.model.cached_rows.layers import TreeCacheLayer
from offload_runtime.model.indexed_attention import key_blocks, pooled_keys
from offload_runtime.model.indexed_attention.pooled_rows import Pool
from scheduler.plan.memory import PassShape, replayed
from tests.fakes.recorded_work import RecordedWork
from tests.offload_runtime.exactness import test_kv_on_host as on_host
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.offload_runtime.model.test_architectures import known
from tests.offload_runtime.prompt_cache import test_restarts as restarts
from tests.offload_runtime.prompt_cache.conftest import small_blocks  # noqa: F401
from tests.pass_samples import PADDING, largest_difference, loaded, passes, wide_tree_error
from tests.pretend_cuda import pretend_cuda
from tests.samples.architectures import BORDER, INDEXED
from tests.samples.tiny_models import checkpoint, greedy, perturbed, reference, streaming_runtime

TREE = {"context_length": 160, "tree": "sequoia", "tree_size": 8, "tree_depth": 4}
POOLING = {"deepseek_v4", "qwen4_exp_text"}  # the number of entries differs from pass to pass
TINY = {**sampling.TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "index_topk": 2}
LONG = [(7 * i * i) % 90 + 5 for i in range(70)]


def error_of_a_wide_tree(target: Path) -> float:
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        return wide_tree_error(runtime, reference(target))


@pytest.mark.parametrize("architecture", known(INDEXED.keys() | POOLING))
def test_long_texts_around_the_number_of_selected_rows(architecture: str) -> None:
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        for length in (BORDER - 1, BORDER, BORDER + 1):
            reply = runtime.generate(LONG[:length], max_new_tokens=64, temperature=0)
            assert reply.token_ids == greedy(target, LONG[:length], 64), length
            assert reply.stats.tokens_per_pass > 1.2
    with streaming_runtime(target, "none", context_length=160, tree="none") as runtime:
        reply = runtime.generate(LONG, max_new_tokens=64, temperature=0)
        assert reply.token_ids == greedy(target, LONG, 64) and reply.stats.tokens_per_pass == 1


@pytest.mark.parametrize("architecture", known(["deepseek_v32", "glm_moe_dsa"]))
def test_a_node_that_attends_to_rows_that_were_not_selected_is_found(architecture, monkeypatch) -> None:
    monkeypatch.setattr(attention, "_selected", lambda mask, indices: mask)
    assert error_of_a_wide_tree(checkpoint(architecture)) > 1e-2


@pytest.mark.parametrize("architecture", known(["deepseek_v32", "glm_moe_dsa"]))
def test_an_index_that_sees_the_keys_of_siblings_is_found(architecture, monkeypatch) -> None:
    """Their rows win places in the selection, although the mask of attention hides them afterwards."""
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        model = runtime._models.target.model._model
        for layer in model.model.layers:
            if layer.self_attn.indexer is not None:
                layer.self_attn.indexer.forward = blind_to_branches(layer.self_attn.indexer.forward)
        assert wide_tree_error(runtime, reference(target)) > 1e-2


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("column_positions", lambda rows: torch.arange(rows.keys)),
        ("seen", lambda rows: torch.ones(rows.count, rows.keys, dtype=torch.bool)),
    ],
)
@pytest.mark.parametrize("architecture", known(["minimax_m3_vl_text"]))
def test_blocks_of_rows_in_the_cache_or_with_siblings_are_found(architecture, name, mistake, monkeypatch) -> None:
    right = key_blocks.current_rows

    def wrong():
        rows = right()
        names = ("column_positions", "seen", "row_positions")
        return SimpleNamespace(**{**{each: getattr(rows, each) for each in names}, name: mistake(rows)})

    monkeypatch.setattr(key_blocks, "current_rows", wrong)
    assert error_of_a_wide_tree(checkpoint(architecture)) > 1e-2


def see_the_last_rows(pool, rows):
    nodes = torch.arange(rows.keys - rows.count + rows.chain, rows.keys)
    return nodes, nodes[:, None] + pool._back(nodes)


def see_all_entries(pool, rows, pooled, table, by_key, right=Pool._of_one):
    values, visible, begins = right(pool, rows, pooled, table, by_key)
    return values, visible | ((begins + pool.rate) % pool.rate == 0), begins


def select_everything(stand_in, hidden_states, q_residual, position_ids, entries):
    return entries.bias


def select_all_keys(scores, entries, rate, blocks, right=pooled_keys.selected_keys):
    return right(scores, entries, rate, scores.shape[-1])


@pytest.mark.parametrize(
    ("architecture", "place", "wrong"),
    [
        ("deepseek_v4", "pooled_rows.Pool._of_nodes", see_the_last_rows),
        ("deepseek_v4", "pooled_rows.Pool._of_one", see_all_entries),
        ("deepseek_v4", "compressed_keys.Compresses._selected", select_everything),
        ("qwen4_exp_text", "pooled_rows.Pool._of_nodes", see_the_last_rows),
        ("qwen4_exp_text", "pooled_rows.Pool._of_one", see_all_entries),
        ("qwen4_exp_text", "pooled_keys.selected_keys", select_all_keys),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_blocks_pooled_or_seen_across_branches_are_found(architecture, place, wrong, monkeypatch) -> None:
    if not can_index():
        pytest.skip("not in the installed transformers, or otherwise")
    monkeypatch.setattr(f"offload_runtime.model.indexed_attention.{place}", wrong)
    assert error_of_a_wide_tree(checkpoint(architecture)) > 1e-2


@pytest.mark.parametrize("architecture", known(POOLING))
def test_passes_whose_shapes_differ_are_not_replayed(architecture: str) -> None:
    shape = PassShape(context_length=64, tree_size=8, rows=16, streams=False)
    assert replayed((read_spec(checkpoint("deepseek_v32")),), "cuda", shape)
    assert not replayed((read_spec(checkpoint(architecture)),), "cuda", shape)


def blind_to_branches(forward):
    def changed(hidden_states, q_resid, embeddings, mask, *args, **kwargs):
        return forward(hidden_states, q_resid, embeddings, torch.zeros_like(mask), *args, **kwargs)

    return changed


@pytest.mark.parametrize("architecture", known(["deepseek_v32"]))
def test_an_index_that_is_not_moved_with_its_rows_is_found(architecture, monkeypatch) -> None:
    everything = TreeCacheLayer.at_rest
    monkeypatch.setattr(
        TreeCacheLayer,
        "at_rest",
        lambda layer: {name: rows for name, rows in everything(layer).items() if name != "index"},
    )
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.2), **TREE) as runtime:
        reply = runtime.generate(LONG, max_new_tokens=64, temperature=0)
    assert reply.token_ids != greedy(target, LONG, 64)


@pytest.mark.parametrize("architecture", known(INDEXED.keys() - POOLING))
def test_passes_can_be_replayed(architecture: str) -> None:
    with loaded(checkpoint(architecture)) as model:
        expected = passes(model)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        ours = passes(model)
        assert model.replays and recorded.replays
    assert largest_difference(ours, expected) <= 1e-5


@pytest.mark.parametrize("architecture", known(INDEXED.keys() | POOLING))
@pytest.mark.parametrize("parallel", [1, 3])
def test_the_plan_counts_the_index(architecture: str, parallel: int) -> None:
    target = checkpoint(architecture)
    spec = read_spec(target)
    assert spec.index is not None
    config = AutoConfig.from_pretrained(target).get_text_config(decoder=True)
    assert spec.index.heads == getattr(config, "index_n_heads", getattr(config, "indexer_n_heads", None))
    assert spec.index.rate == (4 if architecture in POOLING else 1)
    options = {**TREE, "tree": "none", "parallel": parallel}
    with OffloadRuntime.from_pretrained(target, "none", "cpu", **options) as runtime:
        runtime.generate(LONG, max_new_tokens=2, temperature=0)
        tables = runtime._models.target.model.cache.tables()
        assert sum(table.nbytes for table in tables.values()) == runtime.plan.texts * runtime.plan.kv_bytes
        assert sum(rows.nbytes for name, rows in tables.items() if name.startswith("index")) > 0


@pytest.mark.parametrize("architecture", known(["deepseek_v32", "deepseek_v4", "glm_moe_dsa"]))
def test_the_index_stays_on_the_device_where_rows_lie_in_host_memory(architecture: str) -> None:
    with on_host.runtime(architecture, "cpu") as one:
        expected = on_host.written(one, temperature=0.0)
    with pretend_cuda(), on_host.runtime(architecture, "cuda", True, kv="host") as other:
        assert other.plan.kv == "host"
        assert on_host.written(other, temperature=0.0) == expected


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("architecture", known(["deepseek_v32", "deepseek_v4"]))
def test_a_restart_finds_the_index_with_the_rows(architecture: str, tmp_path: Path) -> None:
    restarts.assert_restarts(checkpoint(architecture), tmp_path, tree="sequoia")


def test_sampled_texts_follow_the_distribution() -> None:
    """Of every text of a few tokens, of which each row selects two."""
    target = checkpoint("deepseek_v32", seed=9, **TINY)
    sampling.assert_follows(target)


def test_an_older_transformers_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setattr(indexed, "version", lambda name: "5.17.0")
    with pytest.raises(UnsupportedModelError, match=r"deepseek_v32 cannot be run: .* from transformers 5\.23 on"):
        read_spec(checkpoint("deepseek_v32"))
