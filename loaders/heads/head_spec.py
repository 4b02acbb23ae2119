"""A draft head as a plan sees it: a small model that stays on the device. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from loaders.checkpoint.spec import ITEMSIZE, HeadSizes, LayerSpec, ModelSpec, aligned
from loaders.heads.eagle3_config import Eagle3Config
from loaders.heads.head_files import HeadFiles
from loaders.hub.names import directory_name
from loaders.safetensors_files.headers import StoredTensor


def head_spec(files: HeadFiles, target: ModelSpec) -> ModelSpec:
    """The head computed in the target's dtype. Its bytes are those of its own tensors, not of what it shares."""
    head, dtype = files.config, target.dtype
    by_layer: dict[int, list[StoredTensor]] = {number: [] for number in range(head.layers)}
    outside: list[StoredTensor] = []
    for name, tensor in sorted(files.checkpoint.tensors.items()):
        number = int(name.split(".")[1]) if name.startswith("layers.") and name.split(".")[1].isdecimal() else -1
        by_layer.get(number, outside).append(tensor)
    layers = tuple(_layer(number, tensors, dtype) for number, tensors in by_layer.items())
    kv_bytes = files.kv_bytes_per_token(dtype)
    width = head.target_hidden_size if isinstance(head, Eagle3Config) else head.hidden_size
    return ModelSpec(
        directory=files.directory,
        name=directory_name(files.directory),
        architecture=f"{files.kind.value} head",
        model_type=head.layer["model_type"],
        dtype=dtype,
        stored_dtype=dtype,
        layers=layers,
        embeddings_and_head_bytes=_nbytes(outside, dtype),
        disk_bytes=files.checkpoint.nbytes,
        vocab_size=head.vocab_size,
        hidden_size=head.hidden_size,
        intermediate_size=head.layer["intermediate_size"],
        num_heads=head.layer["num_attention_heads"],
        kv_bytes_per_token=kv_bytes,
        largest_kv_bytes=kv_bytes // head.layers,
        max_positions=max(target.max_positions, int(head.layer.get("max_position_embeddings") or 0)),
        recurrent=False,
        head=HeadSizes(len(head.taps) * width, head.hidden_size, by_level=isinstance(head, Eagle3Config)),
    )


def _layer(number: int, tensors: list[StoredTensor], dtype: str) -> LayerSpec:
    first = min(((tensor.file, tensor.offset) for tensor in tensors), default=None)
    return LayerSpec(f"layers.{number}", _nbytes(tensors, dtype), sum(tensor.nbytes for tensor in tensors), first)


def _nbytes(tensors: Iterable[StoredTensor], dtype: str) -> int:
    return sum(aligned(math.prod(tensor.shape) * ITEMSIZE[dtype]) for tensor in tensors)
