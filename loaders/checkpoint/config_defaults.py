"""Values that the nested configs of text models leave out where they are transformers' own defaults. Imports no torch.

Gemma 3 4B, for one, states no number of heads, and LLaVA 1.5 no number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loaders.text_part import text_values

NAMES = ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")
# By the text model's `model_type`, in the order of `NAMES`; those that no config was seen to leave out are missing.
DEFAULTS: dict[str, tuple[int, int, int]] = {
    "aria_text": (32, 32, 2048),
    "cohere2": (40, 64, 8192),
    "deepseek_v3": (61, 128, 4096),
    "gemma3_text": (26, 8, 131072),
    "gemma3n_text": (35, 8, 32768),
    "gemma4_text": (30, 8, 131072),
    "gemma4_unified_text": (30, 8, 262144),
    "glm4v_moe_text": (46, 96, 65536),
    "glm4v_text": (40, 32, 32768),
    "granite": (32, 32, 2048),
    "lfm2": (32, 32, 128000),
    "llama": (32, 32, 2048),
    "llama4_text": (48, 40, 131072),
    "mistral": (32, 32, 131072),
    "mistral_large4_text": (72, 64, 1048576),
    "mllama_text_model": (40, 32, 131072),
    "persimmon": (36, 64, 16384),
    "qwen2": (32, 32, 32768),
    "qwen2_5_vl_text": (80, 64, 32768),
    "qwen2_vl_text": (80, 64, 32768),
    "qwen3": (32, 32, 32768),
    "qwen3_5_moe_text": (40, 16, 32768),
    "qwen3_5_text": (32, 16, 32768),
    "qwen3_vl_moe_text": (24, 16, 128000),
    "qwen3_vl_text": (32, 32, 128000),
}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the text model, with defaults for what a nested config leaves out."""
    text = text_values(config)
    nested = isinstance(config.get("text_config"), dict)
    return {**dict(zip(NAMES, DEFAULTS.get(text["model_type"], ()))), **text} if nested else text
