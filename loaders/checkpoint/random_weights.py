"""Checkpoints with random weights in the shapes of real models, for benchmarks and tests without a download.

The time and memory of a pass depend on shapes alone. There is no tokenizer: such models run on token ids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from loaders.errors import ModelFilesError
from loaders.foreign_files import SINGLE_FILE
from loaders.safetensors_files.headers import Checkpoint, StoredTensor
from loaders.safetensors_files.shards import SHARD_BYTES
from loaders.safetensors_files.writer import TensorEntry, write_checkpoint

SPREAD = 0.02  # standard deviation of matrix entries
BLOCK_ELEMENTS = 4_194_319  # prime, so that repeats of the block never align with the rows of a matrix


def _shape(
    model_type: str,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    positions: int,
    rope: float | Mapping[str, Any] = 10_000.0,
    **others: Any,
) -> dict[str, Any]:
    """Keyword arguments of the model type's config class; `rope` is the base, or all rotary parameters."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "rope_parameters": dict(rope) if isinstance(rope, Mapping) else {"rope_type": "default", "rope_theta": rope},
        "tie_word_embeddings": False,
        **others,
    }


_LLAMA_32_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# The published config.json of each model; "tiny" and "small" run on a CPU in an instant.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape("llama", 64, 176, 4, 4, 2, 512, 2048),
    "small": _shape("llama", 512, 1408, 8, 8, 4, 4096, 4096),
    "llama-68m": _shape("llama", 768, 3072, 2, 12, 12, 32000, 2048),
    "llama-160m": _shape("llama", 768, 3072, 12, 12, 12, 32000, 2048),
    "tinyllama-1.1b": _shape("llama", 2048, 5632, 22, 32, 4, 32000, 2048),
    "llama-3.2-1b": _shape("llama", 2048, 8192, 16, 32, 8, 128256, 131072, _LLAMA_32_ROPE, tie_word_embeddings=True),
    "llama-3.2-3b": _shape("llama", 3072, 8192, 28, 24, 8, 128256, 131072, _LLAMA_32_ROPE, tie_word_embeddings=True),
    "llama-2-7b": _shape("llama", 4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": _shape("llama", 5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-2-70b": _shape("llama", 8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3-8b": _shape("llama", 4096, 14336, 32, 32, 8, 128256, 8192, 500_000.0),
    "llama-3-70b": _shape("llama", 8192, 28672, 80, 64, 8, 128256, 8192, 500_000.0),
    "qwen2.5-0.5b": _shape("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, 1e6, tie_word_embeddings=True),
    "qwen2.5-7b": _shape("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, 1e6),
    "qwen2.5-32b": _shape("qwen2", 5120, 27648, 64, 40, 8, 152064, 32768, 1e6),
    "qwen2.5-72b": _shape("qwen2", 8192, 29568, 80, 64, 8, 152064, 32768, 1e6),
    "qwen3-0.6b": _shape("qwen3", 1024, 3072, 28, 16, 8, 151936, 40960, 1e6, head_dim=128, tie_word_embeddings=True),
    "qwen3-32b": _shape("qwen3", 5120, 25600, 64, 64, 8, 151936, 40960, 1e6, head_dim=128),
    "mixtral-8x7b": _shape("mixtral", 4096, 14336, 32, 32, 8, 32000, 32768, 1e6, num_local_experts=8),
}


class RandomValues:
    """Endless N(0, 0.02²) values: one block of about four million, repeated from a random offset for each tensor."""

    def __init__(self, dtype: torch.dtype, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        self._block = torch.randn(BLOCK_ELEMENTS, generator=self._generator).mul_(SPREAD).to(dtype)

    def pieces(self, count: int) -> Iterator[Tensor]:
        """`count` values, in pieces."""
        offset = int(torch.randint(len(self._block), (), generator=self._generator))
        while count:
            piece = self._block[offset : offset + count]
            yield piece
            offset, count = 0, count - len(piece)


def write_random_checkpoint(
    config: PretrainedConfig | Mapping[str, Any],
    directory: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    distinct_layers: int | None = None,
) -> None:
    """Write config.json and safetensors files of a model with random weights, named as published checkpoints are.

    `config` is any config of a causal language model, or its keyword arguments with `model_type` (see SHAPES).
    Matrices are N(0, 0.02²), norm weights 1. One block of about four million random values is repeated from a random
    offset for each tensor, so writing is as fast as the disk and takes no memory; equal arguments give equal files.
    `distinct_layers` writes only that many decoder layers; `share_layers` then reuses them for the others.
    Raises ModelFilesError if the disk is too full.
    """
    config = _config_of(config)
    directory = Path(directory)
    random = RandomValues(dtype, seed)

    def values(entry: TensorEntry) -> Iterable[Tensor]:
        return [torch.ones(entry.count, dtype=dtype)] if _is_scale(entry) else random.pieces(entry.count)

    write_checkpoint(directory, _entries(config, distinct_layers), dtype, values, shard_bytes)
    config.dtype = dtype
    config.save_pretrained(directory)


def described_checkpoint(config: Mapping[str, Any], directory: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The headers and config that `write_random_checkpoint` would write in bfloat16; writes nothing."""
    known = _config_of(config)
    tensors, end = {}, 0
    for entry in _entries(known, None):
        nbytes = 2 * entry.count
        tensors[entry.name] = StoredTensor(entry.name, directory / SINGLE_FILE, "BF16", entry.shape, end, nbytes)
        end += nbytes
    return Checkpoint(directory, tensors), {**config, "architectures": known.architectures, "dtype": "bfloat16"}


def share_layers(checkpoint: Checkpoint, num_layers: int, stored: Sequence[int] | None = None) -> Checkpoint:
    """A checkpoint of `num_layers` decoder layers, in which layer i is read from layer `stored[i]` on disk.

    By default layer i is read from layer i % (layers on disk). Nothing is written; all layers on disk have one shape.
    Raises ModelFilesError if `stored` names layers that the files do not hold.
    """
    layers: dict[int, list[tuple[str, str]]] = {}
    prefix = _layer_prefix(checkpoint.tensors)
    for name in checkpoint.tensors:
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            layers.setdefault(int(number), []).append((name, rest))
    stored = [layer % len(layers) for layer in range(num_layers)] if stored is None else stored
    if len(stored) != num_layers or not layers.keys() >= set(stored):
        raise ModelFilesError(
            f"{checkpoint.directory}: {num_layers} layers are to be found in layers {sorted(set(stored))} of the "
            f"files, which hold {sorted(layers)}. Write the checkpoint again."
        )
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(prefix)}
    for layer, source in enumerate(stored):
        for name, rest in layers[source]:
            alias = f"{prefix}{layer}.{rest}"
            tensors[alias] = replace(checkpoint.tensors[name], name=alias)
    return Checkpoint(checkpoint.directory, tensors)


def _is_scale(entry: TensorEntry) -> bool:
    """Whether it is a norm weight, which is all ones; matrices and biases are random."""
    return len(entry.shape) == 1 and entry.name.endswith(".weight")


def _config_of(config: PretrainedConfig | Mapping[str, Any]) -> PretrainedConfig:
    return deepcopy(config) if isinstance(config, PretrainedConfig) else AutoConfig.for_model(**config)


def _entries(config: PretrainedConfig, distinct_layers: int | None) -> list[TensorEntry]:
    """Names and shapes of the tensors on disk; sets the architecture in `config`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    entries = [
        TensorEntry(name, tuple(tensor.shape)) for name, tensor in revert_weight_conversion(model, state).items()
    ]
    if distinct_layers is None:
        return entries
    prefix = _layer_prefix(entry.name for entry in entries)
    return [entry for entry in entries if _layer_number(entry.name, prefix) < distinct_layers]


def _layer_prefix(names: Iterable[str]) -> str:
    """The prefix of layer numbers ("model.layers."): the most common one before a name's first number."""
    matches = (re.match(r"(.*?\.)\d+\.", name) for name in names)
    return Counter(match[1] for match in matches if match).most_common(1)[0][0]


def _layer_number(name: str, prefix: str) -> int:
    """The number of the layer that a tensor belongs to; -1 outside the layers."""
    return int(name.removeprefix(prefix).split(".", 1)[0]) if name.startswith(prefix) else -1
