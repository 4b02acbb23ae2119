"""Models whose attention selects rows by an index: which they are, and how large the index is. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from loaders.checkpoint.spec import IndexSizes
from loaders.safetensors_files.headers import StoredTensor

# An indexer scores all earlier tokens for each row, and attention takes only the best of them (arXiv 2512.02556).
INDEXED_MODELS = {"axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4", "mistral_large4_text"}
INDEXED_SINCE = (5, 23)  # of transformers: earlier ones keep the keys of indexers otherwise, or do not know them

_KEY_PROJECTION = ".indexer.wk.weight"


def indexes(model_type: str) -> bool:
    """Whether such models select rows by an index."""
    return model_type in INDEXED_MODELS


def can_index() -> bool:
    """Whether the installed transformers keeps the keys of indexers in the cache."""
    return tuple(int(part) for part in version("transformers").split(".")[:2]) >= INDEXED_SINCE


def index_sizes(
    config: Mapping[str, Any], layers: Sequence[Sequence[StoredTensor]], itemsize: int
) -> IndexSizes | None:
    """The sizes of a model's index; None if no layer has any. layers: the tensors of each."""
    widths = [tensor.shape[0] for tensors in layers for tensor in tensors if tensor.name.endswith(_KEY_PROJECTION)]
    heads = config.get("index_n_heads")
    if not widths or type(heads) is not int:
        return None
    return IndexSizes(sum(widths) * itemsize, heads)
