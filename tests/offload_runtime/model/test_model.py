"""The model under the decode loop: what it refuses, how far a text may grow, and what closing frees."""

import gc
import threading
from contextlib import nullcontext

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoConfig, AutoModelForCausalLM

from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError, PromptError, UnsupportedModelError
from offload_runtime.model.model import Model
from scheduler.streaming.device_memory import DeviceMemory
from tests.samples.tiny_models import BASE, PROMPT, checkpoint, greedy, perturbed, streaming_runtime

TREE = {"tree": "sequoia", "tree_size": 12, "tree_depth": 4}


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
        buffers += [rows for layer in model.cache.layers for rows in layer.tables.values()]
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


def test_a_prompt_too_long_is_told_what_the_model_can_hold():
    with OffloadRuntime.from_pretrained(checkpoint("llama"), "none", device="cpu", context_length=16) as runtime:
        most = BASE["max_position_embeddings"]
        with pytest.raises(PromptError, match=f"--context-length {2 * 20} "):
            runtime.generate([1] * 20)
        with pytest.raises(PromptError, match=f"--context-length {most} "):
            runtime.generate([1] * (most - 1))
        with pytest.raises(PromptError, match=f"made for {most} tokens"):
            runtime.generate([1] * most)


# What CUDA has been seen to say, PyTorch's allocator first.
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


def out_of_memory(monkeypatch, times, error=FULL[0]):
    """Let the next `times` passes run out of memory."""
    left, forward = [times], Model.forward

    def run(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise error
        return forward(*arguments, **options)

    monkeypatch.setattr(Model, "forward", run)


def resident_runtime(target):
    """With room to plan with less."""
    return OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", context_length=64, **TREE)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_out_of_memory_in_a_reply_plans_with_less_and_goes_on(monkeypatch, steps_before):
    target, tokens = checkpoint("llama"), []
    with resident_runtime(target) as runtime:
        planned = runtime.plan.device_bytes
        if not steps_before:
            out_of_memory(monkeypatch, 1)
        for number, step in enumerate(runtime.stream(PROMPT, max_new_tokens=20, temperature=0), start=1):
            tokens += step.token_ids
            if number == steps_before:
                out_of_memory(monkeypatch, 1)
        assert tokens == runtime.last_reply.token_ids == greedy(target, PROMPT, 20)
        assert runtime.plan.device_bytes <= 0.9 * planned


@pytest.mark.parametrize("error", FULL[1:], ids=str)
def test_out_of_memory_in_other_words_is_met_alike(monkeypatch, error):
    target = checkpoint("llama")
    with resident_runtime(target) as runtime:
        out_of_memory(monkeypatch, 2, error)
        with pytest.raises(DoesNotFitError, match="--device-memory"):
            runtime.generate(PROMPT, max_new_tokens=4)
        assert runtime.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids == greedy(target, PROMPT, 4)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory"), MemoryError()],
    ids=repr,
)
def test_other_errors_of_a_pass_stay_what_they_are(monkeypatch, error):
    with resident_runtime(checkpoint("llama")) as runtime:
        out_of_memory(monkeypatch, 1, error)
        with pytest.raises(type(error)) as caught:
            runtime.generate(PROMPT, max_new_tokens=4)
        assert caught.value is error


def test_out_of_memory_a_second_time_is_explained_and_the_next_reply_is_right(monkeypatch):
    target = checkpoint("llama")
    with resident_runtime(target) as runtime:
        out_of_memory(monkeypatch, 2)
        with pytest.raises(DoesNotFitError, match="--device-memory"):
            runtime.generate(PROMPT, max_new_tokens=4)
        assert runtime.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids == greedy(target, PROMPT, 4)


def test_out_of_memory_where_no_plan_with_less_fits_leaves_what_is_loaded(monkeypatch):
    target = checkpoint("llama")
    with streaming_runtime(target, context_length=64) as runtime:
        out_of_memory(monkeypatch, 1)
        with pytest.raises(DoesNotFitError, match="does not fit"):
            runtime.generate(PROMPT, max_new_tokens=4)
        assert runtime.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids == greedy(target, PROMPT, 4)


@pytest.mark.parametrize(("times", "fits", "error"), [(1, True, FULL[0]), (2, False, FULL[0]), (1, True, FULL[1])])
def test_out_of_memory_while_loading_plans_with_less_once(monkeypatch, times, fits, error):
    target, left, empty = checkpoint("llama"), [times], DeviceMemory.empty

    def run_out(memory, nbytes):
        if left[0]:
            left[0] -= 1
            raise error
        return empty(memory, nbytes)

    monkeypatch.setattr(DeviceMemory, "empty", run_out)
    threads = threading.active_count()
    expected = nullcontext() if fits else pytest.raises(DoesNotFitError, match="--device-memory")
    with expected, resident_runtime(target) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids == greedy(target, PROMPT, 4)
    assert threading.active_count() == threads
