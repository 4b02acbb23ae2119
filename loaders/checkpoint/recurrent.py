"""Models with recurrent layers: which they are, whether these follow the branches of a tree, how large states are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import Any

from loaders.checkpoint.spec import StateSizes
from loaders.safetensors_files.headers import StoredTensor
from loaders.text_part import text_values

# Models with recurrent layers. Their state works with streaming, but most cannot hold the many branches of a tree.
# Layer types as configs name them; model types whose configs name none; those whose layers branch.
RECURRENT_LAYERS = {"linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "hybrid_sliding", "ssm"}
RECURRENT_MODELS = {
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "glm5_next", "granitemoehybrid", "jamba", "kimi_linear",
    "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_text",
    "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya",
}  # fmt: skip

_DELTA_RULE = {"olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"}
_MAMBA_2 = {"bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"}
_CONVOLUTIONS = {"lfm2", "lfm2_moe", "lfm3"}
_CHANNEL_DELTA_RULE = {"bailing_hybrid", "glm5_next_text", "kimi_linear"}
_LIGHTNING = {"minimax"}
BRANCHING_MODELS = _DELTA_RULE | _CHANNEL_DELTA_RULE | _MAMBA_2 | _CONVOLUTIONS | _LIGHTNING
BRANCHING_SINCE = (5, 23)  # of transformers: earlier ones keep these states otherwise

_CONVOLUTION = re.compile(r"(conv1d|\bconv)\.weight$")
_OF_NGRAMS = ".ple."  # a convolution over what a table of n-grams holds, beside the recurrent layer's own
_NGRAM_SIZE = 3  # where a config leaves it out
_TOKEN_BYTES = 8
_STATE_ITEM_BYTES = 4  # states are float32


def is_recurrent(config: dict[str, Any]) -> bool:
    """Whether a model with this config has recurrent layers."""
    text = text_values(config)
    kinds = [*(text.get("layer_types") or ()), *(text.get("layers_block_type") or ()), *(text.get("block_types") or ())]
    return text["model_type"] in RECURRENT_MODELS or not RECURRENT_LAYERS.isdisjoint(kinds)


def can_branch(model_type: str) -> bool:
    """Whether the recurrent layers of such models follow the branches of a tree, with the installed transformers."""
    if model_type not in BRANCHING_MODELS:  # spares most models 2 ms of reading transformers' metadata, again and again
        return False
    return tuple(int(part) for part in version("transformers").split(".")[:2]) >= BRANCHING_SINCE


def state_sizes(config: dict[str, Any], layers: Sequence[Sequence[StoredTensor]], itemsize: int) -> StateSizes | None:
    """The sizes of a model's states; None if the config does not state the widths of its recurrent layers.

    layers: the tensors of each. itemsize: of the compute dtype.
    """
    found = [[t for t in tensors if _CONVOLUTION.search(t.name) and len(t.shape) == 3] for tensors in layers]
    shapes = [[t.shape for t in tensors if _OF_NGRAMS not in t.name] for tensors in found]
    convolutions = _Convolutions(
        layers=sum(bool(of_layer) for of_layer in shapes),
        channels=sum(shape[0] for of_layer in shapes for shape in of_layer),
        kernel=max((shape[2] for of_layer in shapes for shape in of_layer), default=1),
    )
    if config["model_type"] in _LIGHTNING:
        gates = sum(any("output_gate" in t.name for t in tensors) for tensors in layers)
        convolutions = _Convolutions(layers=gates, channels=0, kernel=1)
    widths = _widths(config, layers, convolutions)
    if widths is None:
        return None
    inputs = convolutions.channels * itemsize
    ngrams = _of_ngrams(config, [t.shape for tensors in found for t in tensors if _OF_NGRAMS in t.name], itemsize)
    memory = convolutions.layers * widths.heads * widths.key * widths.value * _STATE_ITEM_BYTES
    row = widths.groups * widths.key + widths.heads * (widths.value + 2) + 2 * widths.decays
    return StateSizes(
        memory + (convolutions.kernel - 1) * inputs + ngrams.nbytes,
        convolutions.layers * row * _STATE_ITEM_BYTES + inputs + ngrams.row_bytes,
        widths.heads,
        widths.key + widths.value,
        widths.decays,
    )


@dataclass(frozen=True)
class _OfNgrams:
    """What layers with n-grams keep of a text, and of each node of a tree."""

    nbytes: int
    row_bytes: int


def _of_ngrams(config: dict[str, Any], shapes: Sequence[tuple[int, ...]], itemsize: int) -> _OfNgrams:
    """shapes: of their convolutions, which multiply every n-th input. Tokens are kept once for each distance."""
    size = _stated(config, "ngram_size") or _NGRAM_SIZE
    row = sum(shape[0] for shape in shapes) * itemsize
    kept = max((shape[2] - 1 for shape in shapes), default=0) * size
    tokens = len(shapes) * (size - 1) * _TOKEN_BYTES
    return _OfNgrams(kept * row + tokens * size // 2, row + tokens)


@dataclass(frozen=True)
class _Convolutions:
    """layers: recurrent ones, all of which have convolutions, or none. channels: of all of them together."""

    layers: int
    channels: int
    kernel: int


@dataclass(frozen=True)
class _Widths:
    """Of one layer: a state is ``[heads, key, value]``; groups: of heads that have the same keys.
    decays: where every channel of the keys has its own."""

    heads: int
    key: int
    value: int
    groups: int
    decays: int = 0


def _widths(
    config: dict[str, Any], layers: Sequence[Sequence[StoredTensor]], convolutions: _Convolutions
) -> _Widths | None:
    if config["model_type"] in _CONVOLUTIONS or not convolutions.layers:  # without these, all layers attend
        return _Widths(0, 0, 0, 0)
    if config["model_type"] in _LIGHTNING:
        heads = _stated(config, "num_attention_heads")
        width = _stated(config, "head_dim") or (_stated(config, "hidden_size") // heads if heads else 0)
        return _Widths(heads, width, width, groups=heads) if width else None
    if config["model_type"] in _CHANNEL_DELTA_RULE:
        return _channel_delta_rule(layers, convolutions)
    return _mamba_2(config, layers, convolutions) if config["model_type"] in _MAMBA_2 else _delta_rule(config)


def _delta_rule(config: dict[str, Any]) -> _Widths | None:
    heads, key, value = (
        _stated(config, name) for name in ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    )
    return _Widths(heads, key, value, groups=heads) if heads * key * value else None


def _channel_delta_rule(layers: Sequence[Sequence[StoredTensor]], convolutions: _Convolutions) -> _Widths | None:
    """A convolution has the channels of queries, keys and values, all as wide."""
    heads = _decay_rates(layers)
    width = convolutions.channels // convolutions.layers // (3 * heads) if heads else 0
    return _Widths(heads, width, width, groups=heads, decays=heads * width) if width else None


def _decay_rates(layers: Sequence[Sequence[StoredTensor]]) -> int:
    """The heads of a layer: each has a rate at which its state decays."""
    return max((prod(t.shape) for tensors in layers for t in tensors if t.name.endswith("A_log")), default=0)


def _mamba_2(
    config: dict[str, Any], layers: Sequence[Sequence[StoredTensor]], convolutions: _Convolutions
) -> _Widths | None:
    """A convolution has the channels of all values, and of the keys and queries of every group."""
    heads = _decay_rates(layers)
    groups = _stated(config, "mamba_n_groups", "mamba_ngroups", "n_groups")
    key = _stated(config, "mamba_d_state", "ssm_state_size", "state_size")
    values = convolutions.channels // convolutions.layers - 2 * groups * key
    return _Widths(heads, key, values // heads, groups) if heads * groups * key and values > 0 else None


def _stated(config: dict[str, Any], *names: str) -> int:
    """The first of the names that states a positive number; 0 if none does."""
    return next((size for name in names if type(size := config.get(name)) is int and size > 0), 0)
