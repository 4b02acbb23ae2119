"""The model under the decode loop: what it refuses, how far a text may grow, and what closing frees."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoConfig, AutoModelForCausalLM

from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError, UnsupportedModelError, UsageError
from offload_runtime.model import Model
from tests.tiny_models import BASE, PROMPT, checkpoint, greedy, perturbed, streaming_runtime

TREE = {"tree": "sequoia", "tree_size": 12, "tree_depth": 4}
BORDER = 40
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": BORDER,
}


def save(architecture, directory, **changes):
    config = AutoConfig.for_model(architecture, **{**BASE, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("architecture, sizes", [("bloom", {}), ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3})])
def test_a_model_that_counts_rows_for_positions_is_refused(architecture, sizes, tmp_path):
    """The rows of a tree are not in the text's order: its logits would be wrong by far."""
    with pytest.raises(UnsupportedModelError, match="positions"):
        OffloadRuntime.from_pretrained(save(architecture, tmp_path, **sizes), "none", device="cpu", context_length=64)


def test_text_ends_where_long_rotations_begin(tmp_path):
    """Up to there it is exact, though the last trees reach beyond."""
    rope = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": BORDER}
    target = save("phi3", tmp_path, **rope)
    with pytest.raises(UsageError, match=f"more than the {BORDER} positions"):
        OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=BORDER + 1)
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", **TREE) as runtime:
        assert runtime.context_length == BORDER
        reply = runtime.generate(PROMPT, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, BORDER - len(PROMPT))
    assert reply.stats.tokens_per_pass > 1.5


@pytest.mark.parametrize("held", [True, False])
def test_closing_frees_weights_and_caches(held):
    """At once, before garbage is collected: if the runtime is closed but still held, and if it is merely dropped."""
    target = checkpoint("llama")
    runtime = streaming_runtime(target, target, spare=40_000, context_length=64, **TREE)
    runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
    buffers = []
    for model in (runtime._models.target.model, runtime._models.draft.model):
        weights = model._weights
        buffers += [*weights.resident.values(), *(weights.ring.slots if weights.ring else ())]
        buffers += [rows for layer in model.cache.layers for rows in (layer.keys, layer.values)]
    storages = [StorageWeakRef(buffer.untyped_storage()) for buffer in buffers]
    del buffers, weights, model
    gc.collect()
    gc.disable()
    try:
        assert len(storages) > 12 and not any(storage.expired() for storage in storages)
        if held:
            runtime.close()
        else:
            del runtime
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()


def test_everything_may_happen_in_inference_mode():
    target = checkpoint("llama")
    with torch.inference_mode(), streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=20, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, 20)


def test_a_gpu_out_of_memory_is_explained_and_generation_goes_on(monkeypatch):
    target = checkpoint("llama")
    with OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=64) as runtime:
        with monkeypatch.context() as patch:
            patch.setattr(Model, "forward", lambda *arguments, **options: _run_out_of_memory())
            with pytest.raises(DoesNotFitError, match="--device-memory"):
                runtime.generate(list(PROMPT), max_new_tokens=4)
        reply = runtime.generate(list(PROMPT), max_new_tokens=4, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, 4)


def _run_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")
