"""Tiny random checkpoints of many architectures, made on the spot once per process: no download.

Their weights are wide enough that greedy text varies, and norms and biases are random too, so that a tensor that goes
missing or lands in the wrong place changes the text.
"""

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError, ModelFilesError
from tests.samples.architectures import SWEEP

PROMPT = (5, 17, 3, 88, 41, 9, 60, 2, 33, 71, 14, 8)  # longer than the sliding windows below

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_MIXED_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _LLAMA3_ROPE},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {**_MIXED_WINDOWS, "tie_word_embeddings": True, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_MIXED_WINDOWS, "tie_word_embeddings": True},
    "phi3": {},
    "mixtral": _EXPERTS,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {**_EXPERTS, **_MIXED_WINDOWS, "rope_parameters": _YARN},
}

RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **_EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
}
transformers.logging.disable_progress_bar()
_KINDS = {**SWEEP, **ARCHITECTURES, **RECURRENT}
_DIRECTORY = Path(tempfile.mkdtemp(prefix="tiny-models-"))
atexit.register(shutil.rmtree, _DIRECTORY, ignore_errors=True)


def checkpoint(architecture: str, *, seed: int = 2, shards: bool = False, **changes: Any) -> Path:
    """Directory of a random model, made at the first call. `changes` are config values; `shards`: one per 64 kB."""
    return _checkpoint(architecture, seed, shards, tuple(changes.items()))


@cache
def perturbed(source: Path, noise: float, kind: Any = AutoModelForCausalLM) -> Path:
    """A copy of a model with every weight changed by `noise` times its own spread: nearly as good a draft as itself.

    kind: transformers' class that reads the model.
    """
    model = kind.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight += noise * weight.std(correction=0) * torch.randn_like(weight)
    return save(model, "50GB")


def reference(directory: Path, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """The model as transformers alone runs it, in float32."""
    return _reference(directory, kind)


@cache
def _reference(directory: Path, kind: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(directory).get_text_config(decoder=True)
    # transformers 5.17 takes a fused kernel for models that cap their scores, and leaves the cap out
    kernel = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    return kind.from_pretrained(directory, dtype=torch.float32, **kernel).eval()


def greedy(
    directory: Path, prompt: Sequence[int], count: int, kind: Any = AutoModelForCausalLM, **options: Any
) -> list[int]:
    """The new tokens of transformers' own greedy `generate`, computed once per process if no options are given."""
    if options:  # they may hold a cache, which a text fills
        return _generated(directory, tuple(prompt), count, kind, options)
    return list(_greedy(directory, tuple(prompt), count, kind))


@cache
def _greedy(directory: Path, prompt: tuple[int, ...], count: int, kind: Any) -> tuple[int, ...]:
    return tuple(_generated(directory, prompt, count, kind, {}))


def _generated(
    directory: Path, prompt: tuple[int, ...], count: int, kind: Any, options: Mapping[str, Any]
) -> list[int]:
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count, "do_sample": False, **options}
    return reference(directory, kind).generate(ids, **options)[0, len(prompt) :].tolist()


def streaming_runtime(model: Path, draft: Path | str = "none", spare: int = 0, **options: Any) -> OffloadRuntime:
    """A runtime on the CPU under the least device memory that the planner accepts, and `spare` bytes more.

    With none to spare every layer is read from disk in every pass. `plan.device_budget` is the cap.
    """
    cap = 1
    while True:
        try:
            runtime = OffloadRuntime.from_pretrained(model, draft, device="cpu", device_memory=cap, **options)
        except DoesNotFitError as error:
            assert error.needed + spare > cap
            cap = error.needed + spare
        else:
            return runtime


def writes(runtime: OffloadRuntime, prompt: Sequence[int], text: list[int]) -> bool:
    """Whether `text` is the greedy continuation; wrong weights may also give none, being no numbers."""
    try:
        return runtime.generate(prompt, max_new_tokens=len(text), temperature=0).token_ids == text
    except ModelFilesError:
        return False


def weights_bytes(directory: Path) -> int:
    """Size of the weight files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


@cache
def _checkpoint(architecture: str, seed: int, shards: bool, changes: tuple) -> Path:
    return make_checkpoint(architecture, seed, shards, dict(changes))


def make_checkpoint(architecture: str, seed: int, shards: bool, changes: dict[str, Any]) -> Path:
    """What `checkpoint` keeps, made anew; `changes` may hold lists and dicts."""
    config = AutoConfig.for_model(architecture, **{**BASE, **_KINDS[architecture], **changes})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.2 * torch.randn_like(weight)
        if config.tie_word_embeddings:  # else every token predicts itself
            model.get_input_embeddings().weight *= 0.03
    return save(model, "64KB" if shards else "50GB")


def save(model: PreTrainedModel, shard_size: str) -> Path:
    directory = Path(tempfile.mkdtemp(dir=_DIRECTORY))
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory
