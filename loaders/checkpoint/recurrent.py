"""Models with recurrent layers: which they are, whether these follow the branches of a tree, how large states are."""

from collections.abc import Sequence
from importlib.metadata import version
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

BRANCHING_MODELS = {"olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"}
BRANCHING_SINCE = (5, 23)  # of transformers: earlier ones keep these states otherwise

_STATE_ITEM_BYTES = 4  # states are float32


def is_recurrent(config: dict[str, Any]) -> bool:
    """Whether a model with this config has recurrent layers."""
    text = text_values(config)
    kinds = [*(text.get("layer_types") or ()), *(text.get("layers_block_type") or ()), *(text.get("block_types") or ())]
    return text["model_type"] in RECURRENT_MODELS or not RECURRENT_LAYERS.isdisjoint(kinds)


def can_branch(model_type: str) -> bool:
    """Whether the recurrent layers of such models follow the branches of a tree, with the installed transformers."""
    release = tuple(int(part) for part in version("transformers").split(".")[:2])
    return model_type in BRANCHING_MODELS and release >= BRANCHING_SINCE


def state_sizes(config: dict[str, Any], layers: Sequence[Sequence[StoredTensor]], itemsize: int) -> StateSizes | None:
    """The sizes of a model's states; None if the config does not state the widths of its linear attention.

    layers: the tensors of each. itemsize: of the compute dtype.
    """
    names = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    heads, key, value = (size if type(size := config.get(name)) is int and size > 0 else 0 for name in names)
    if not heads * key * value:
        return None
    convolutions = [[t.shape for t in tensors if "conv1d" in t.name and len(t.shape) == 3] for tensors in layers]
    count = sum(bool(shapes) for shapes in convolutions)
    inputs = sum(shape[0] for shapes in convolutions for shape in shapes) * itemsize
    kernel = max((shape[2] for shapes in convolutions for shape in shapes), default=1)
    memory = count * heads * key * value * _STATE_ITEM_BYTES
    row = count * heads * (key + value + 2) * _STATE_ITEM_BYTES + inputs
    return StateSizes(memory + (kernel - 1) * inputs, row, heads, key + value)
