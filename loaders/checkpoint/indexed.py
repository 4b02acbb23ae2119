"""Models whose attention selects rows by an index: which they are, and how large the index is. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from loaders.checkpoint.spec import IndexSizes
from loaders.safetensors_files.headers import StoredTensor

# An indexer scores all earlier tokens for each row, and attention takes only the best of them (arXiv 2512.02556).
INDEXED_MODELS = {
    "axk2", "deepseek_v32", "deepseek_v4", "dots3_note_text", "glm5_next_text", "glm_moe_dsa", "hy_v4",
    "minimax_m3_vl_text", "mistral_large4_text", "qwen4_exp_text",
}  # fmt: skip
INDEXED_SINCE = (5, 23)  # of transformers: earlier ones keep the keys of indexers otherwise, or do not know them

_KEY_PROJECTIONS = (".indexer.wk.weight", ".indexer.k_proj.weight", ".index_k_proj.weight")


# What compressors project of each token, and the width of the entries that stand for blocks.
_POOLED = re.compile(r"\.compressor\.(indexer\.)?((wkv|wgate|kv_proj|gate_proj)\.weight|(norm|kv_norm)\.weight)$")
_GATES, _QUERIES_AND_KEYS = ".index_kpool_compress_gate", ".index_qk_proj.weight"  # of GLM-5.3; of Qwen4-exp
_RATES = ("compress_rate_csa", "index_kpool", "indexer_compress_ratio")
_DEFAULT_RATES = {"deepseek_v4": 4, "glm5_next_text": 16}
_BY_HEAD = {"minimax_m3_vl_text"}  # each of their heads selects for some heads of attention


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
    tensors = [tensor for one in layers for tensor in one]
    widths = [tensor.shape[0] for tensor in tensors if is_index_key(tensor.name)]
    pooled = [tensor.shape[0] for tensor in tensors if _POOLED.search(tensor.name)]
    pooled += [2 * tensor.shape[0] for tensor in tensors if tensor.name.endswith(_GATES)]  # and an entry
    pooled += [2 * _width(config) for tensor in tensors if tensor.name.endswith(_QUERIES_AND_KEYS)]  # a key, an entry
    heads = _heads(config)
    if not heads or not (widths or pooled):
        return None
    masks = heads if config["model_type"] in _BY_HEAD else 1
    rate = _rate(config) if pooled and not widths else 1
    return IndexSizes(sum(widths + pooled) * itemsize, heads, masks, bool(pooled), rate)


def is_index_key(name: str) -> bool:
    """Whether a tensor of this name projects to the keys of an indexer."""
    return name.endswith(_KEY_PROJECTIONS)


def _heads(config: Mapping[str, Any]) -> int:
    """The heads of an indexer; 0 where the config states none."""
    nested = config.get("sparse_attention_config")  # as MiniMax publishes it
    stated = nested.get("sparse_num_index_heads") if isinstance(nested, dict) else None
    heads = config.get("index_n_heads", config.get("indexer_n_heads", stated))
    return heads if type(heads) is int and heads > 0 else 0


def _rate(config: Mapping[str, Any]) -> int:
    """The tokens of a block that one entry of the index stands for; where it is not stated, transformers' default."""
    by_kind = config.get("compress_rates")
    sparse = by_kind.get("compressed_sparse_attention") if isinstance(by_kind, dict) else None
    stated = (sparse, *(config.get(name) for name in _RATES))
    rate = next((rate for rate in stated if rate is not None), _DEFAULT_RATES.get(config["model_type"], 1))
    return rate if type(rate) is int and rate > 0 else 1


def _width(config: Mapping[str, Any]) -> int:
    width = config.get("indexer_head_dim")
    return width if type(width) is int and width > 0 else 0
