"""Gives indexers that select blocks a forward that follows the rows of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from offload_runtime.model.indexed_attention.compressed_keys import Compresses
from offload_runtime.model.indexed_attention.key_blocks import SelectsKeyBlocks
from offload_runtime.model.indexed_attention.pooled_keys import SelectsGatedBlocks, SelectsMeanBlocks

_OF_CLASS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "DeepseekV4CSACompressor": Compresses,
    "DeepseekV4HCACompressor": Compresses,
    "Glm5NextTextIndexer": SelectsGatedBlocks,
    "MiniMaxM3VLIndexer": SelectsKeyBlocks,
    "Qwen4ExpTextQSAIndexer": SelectsMeanBlocks,
}


def follow_rows(model: nn.Module) -> None:
    """Replace the forwards of a model's indexers where transformers' own take blocks of rows in the cache."""
    for module in model.modules():
        if adapted := _OF_CLASS.get(type(module).__name__):
            module.forward = adapted(module)
