"""Checks the values in config.json that determine sizes and results against sane limits. Imports no torch.

transformers accepts most values unchecked: a count of 2^31 makes it build for hours, a RoPE base of 0 gives NaN, and a
value of the wrong type fails anywhere. Values not named here are left to transformers, whose errors are explained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.message_text import quoted

_COUNT = re.compile(
    r"(num|n)_\w+|max_\w*len\w*|\w+_(size|dim|rank|heads|layers|experts|embeddings|positions|window|length)"
)
_MOST = (1 << 31) - 1
_MOST_OF = {"head_dim": 1 << 16, "num_labels": 100_000}  # transformers creates a name for each label
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 1 << 16  # many models have a module for each
_MOST_HEADS = 256  # of n-grams; published models have 16
_POSITIVE = {
    "head_dim", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers", "max_position_embeddings", "n_embd", "n_head", "n_layer", "n_positions", "d_model",
}  # fmt: skip
_COUNTED_BACKWARDS = {"vision_feature_layers"}  # numbers of layers of a vision tower, from its end
_LISTS_OF_TEXT = (
    *("architectures", "layer_types", "layers_block_type", "block_types", "mlp_layer_types", "indexer_types"),
)
_OBJECTS = ("quantization_config", "compression_config", "rope_scaling", "rope_parameters")
_DTYPES = {
    "auto", "float32", "float16", "bfloat16", "float64", "float", "half", "double", "float8_e4m3fn", "float8_e5m2",
}  # fmt: skip
# Patterns of names, and the bounds of their values: far wider than published models need.
_REALS = (
    (re.compile(r"^layer_rope_theta$"), 0.0, 1e13),  # 0 where a layer has no rotations
    (re.compile(r"(?<!^layer_rope_)theta|base_freq|rotary_emb_base"), 1.0, 1e13),
    (re.compile(r"eps$|epsilon$"), 0.0, 0.1),
    (re.compile(r"^(attn|final)_logit_softcapping$"), 1e-6, 1e9),
    (re.compile(r"^(partial_rotary_factor|rotary_pct)$"), 1e-6, 1.0),
    (re.compile(r"^factor$"), 1e-6, 1e6),
)


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelFilesError, which names the first invalid value."""
    text = config.get("text_config")
    if text is not None and not isinstance(text, dict):
        raise _wrong(file, "text_config", text, "an object")
    for values in (config, text or {}):
        _check_kinds(file, values)
        for name, value in _leaves(values):
            positive = name in values and name in _POSITIVE and not (name == "head_dim" and is_unrotated(values))
            _check_number(file, name, value, least=1 if positive else -1)
    merged = {**config, **(text or {})}
    _check_windows(file, merged)
    _check_experts(file, merged)
    _check_ngrams(file, merged)


def is_unrotated(values: Mapping[str, Any]) -> bool:
    """Whether a config states that no part of a key is rotated; then `head_dim`, which is that part's, may be 0."""
    return values.get("qk_rope_head_dim") == 0


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number with its name, including those in lists and objects."""
    stack: list[tuple[str, Any]] = list(values.items())
    while stack:
        name, value = stack.pop()
        if name in _COUNTED_BACKWARDS:
            continue
        if isinstance(value, dict):
            stack.extend((key, one) for key, one in value.items())
        elif isinstance(value, list):
            stack.extend((name, one) for one in value)
        elif type(value) in (int, float):
            yield name, value


def _check_kinds(file: Path, values: Mapping[str, Any]) -> None:
    for name in _LISTS_OF_TEXT:
        value = values.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise _wrong(file, name, value, "a list of words")
    for name in _OBJECTS:
        if not isinstance(values.get(name), dict | None):
            raise _wrong(file, name, values[name], "an object")
    for name in ("dtype", "torch_dtype"):
        value = values.get(name)
        if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES):
            raise _wrong(file, name, value, f"one of {', '.join(sorted(_DTYPES))}")
    stored = values.get("stored_layers")
    if stored is not None and not (isinstance(stored, list) and all(type(one) is int and one >= 0 for one in stored)):
        raise _wrong(file, "stored_layers", stored, "a list of layers")


def _check_number(file: Path, name: str, value: float, least: int) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise _wrong(file, name, value, "a number")
    if _COUNT.fullmatch(name):
        most = _MOST_OF.get(name, _MOST_EXPERTS if "expert" in name and name.startswith(("n", "num")) else _MOST)
        most = _MOST_LAYERS if name.endswith("layers") else most
        if not least <= value <= most:
            what = "a positive number" if value < least else f"at most {most:,}"
            raise _wrong(file, name, value, what)
        return
    for pattern, lowest, highest in _REALS:
        if pattern.search(name) and not lowest <= value <= highest:
            raise _wrong(file, name, value, f"a number from {lowest:g} to {highest:g}")


def _check_windows(file: Path, values: Mapping[str, Any]) -> None:
    window = values.get("sliding_window", 1)
    if "sliding_attention" in (values.get("layer_types") or ()) and not (type(window) is int and window > 0):
        raise _wrong(file, "sliding_window", window, "a positive number, as there are layers that slide")


def _check_experts(file: Path, values: Mapping[str, Any]) -> None:
    chosen = values.get("num_experts_per_tok")
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        there = values.get(name)
        if type(chosen) is int and type(there) is int and chosen > there > 0:
            raise _wrong(file, "num_experts_per_tok", chosen, f"at most {there}, the number of experts")


def _check_ngrams(file: Path, values: Mapping[str, Any]) -> None:
    """transformers looks for a prime number for every head of every layer, one after the other from the first on."""
    layers = values.get("ple_layer_ids")
    if layers is None:
        return
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise _wrong(file, "ple_layer_ids", layers, "a list of layers")
    for name, default, most in (("ngram_size", 3, 9), ("heads_per_ngram", 8, _MOST_HEADS)):
        value = values.get(name, default)
        if type(value) is not int or not 0 < value <= most:
            raise _wrong(file, name, value, f"a positive number of at most {most:,}")
    if len(layers) * (values.get("ngram_size", 3) - 1) * values.get("heads_per_ngram", 8) > _MOST_HEADS:
        raise _wrong(file, "ple_layer_ids", layers, f"so few layers that n-grams have at most {_MOST_HEADS:,} heads")


def _wrong(file: Path, name: str, value: object, must: str) -> ModelFilesError:
    return ModelFilesError(f"{file}: {quoted(name)} is {quoted(value)}, but must be {must}.")
