"""What makes a tiny model of each multimodal family, on top of its text model's own entry in `architectures`.

A config has a part for its text model, and others for what it sees and hears, which are small and never run here.
"""

from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from loaders.checkpoint.recurrent import can_branch
from loaders.text_part import NOT_READ
from tests.samples.architectures import BORDER, FEW_EXPERTS, INDEX, LATENT, SWEEP, Changes

_ROTARY: Changes = {"rope_type": "default", "rope_theta": 10_000.0}
# Rotary positions in three rows, which are equal for text.
_ROWS: Changes = {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1]}}
_WHOLE_ROWS: Changes = {"rope_parameters": {**_ROWS["rope_parameters"], "partial_rotary_factor": 1.0}}
_MIXED: Changes = {
    "sliding_window": BORDER,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

# Text models that only multimodal families have, or that those have with other values.
TEXTS: dict[str, Changes] = {
    **dict.fromkeys(
        ("cosmos3_edge_text", "glm4v_text", "paddleocr_vl_text", "qwen2_5_omni_text", "qwen2_5_vl_text",
         "qwen2_vl_text", "qwen3_vl_text"),
        _ROWS,
    ),
    "qwen3_omni_moe_text": {**FEW_EXPERTS, **_ROWS},
    "qwen3_vl_moe_text": {**FEW_EXPERTS, **_ROWS, "moe_intermediate_size": 24},  # square would hide transposing
    "cohere_compass_text": {
        **_MIXED,
        "rope_parameters": {"full_attention": _ROTARY, "sliding_attention": _ROTARY},
    },
    "emu3_text_model": {"pad_token_id": 0},
    "ernie4_5_vl_moe_text": {
        **FEW_EXPERTS,
        "moe_intermediate_size": [16, 16],
        "rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 2]},
    },
    "gemma4_text": {**SWEEP["gemma4_text"], "pad_token_id": 0},
    "gemma4_unified_text": {**_MIXED, "global_head_dim": 8, "pad_token_id": 0},
    "glm4v_moe_text": {**FEW_EXPERTS, **_WHOLE_ROWS},
    "glm5_next_text": {
        **{**INDEX, "num_hidden_layers": 4, "index_kpool": 4, "hc_mult": 2, "qk_rope_head_dim": 0},
        **{"linear_head_dim": 8, "linear_num_heads": 4, "indexer_types": ["full", "full", "shared", "full"]},
        "layer_types": ["linear_attention", "indexed_attention", "indexed_attention", "linear_attention"],
    },
    "glm_ocr_text": _WHOLE_ROWS,
    "hunyuan_vl_text": {"rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 1, 1]}},
    "mistral": {"sliding_window": BORDER},
    "mistral4": {**FEW_EXPERTS, **LATENT, "head_dim": 16},
    "mistral_large4_text": {
        **{**INDEX, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1], "kv_source_layers": [0, 1, 0, 0]},
        "indexer_types": ["full", "full", "full", "shared"],
    },
    "mllama_text_model": {"num_hidden_layers": 5, "cross_attention_layers": [1, 3]},
    "muse_glimmer_text": {"sliding_window": BORDER},
    "muse_spark_text": {**FEW_EXPERTS, "sliding_window": BORDER, "moe_hidden_size": 16},
    "step3p5": {**FEW_EXPERTS, **_MIXED, "share_expert_dim": 16, "pad_token_id": 0},
}  # fmt: skip

_PROJECTOR: Changes = {"out_hidden_size": 32, "projector_hidden_size": 32}
_MARKS: Changes = {"vision_start_token_id": 90, "vision_end_token_id": 91}

# Values of the whole config, and of its parts.
CONFIGS: dict[str, Changes] = {
    "deepseek_vl_hybrid": {"high_res_vision_config": {"output_channels": 8, "mlp_dim": 32}},
    "dots3_note": {
        "vision_config": {
            **{"per_layer_config": None, "mlp_layer_types": None, "pyramid_num_routed": [-1, 2]},
            **{"moe_intermediate_size": 16, "adapter_in_dim": 32, "adapter_out_dim": 32},
        },
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "emu3": {
        "vocabulary_map": {"<image>": 90},
        "vq_config": {
            **{"base_channels": 32, "num_res_blocks": 1},
            **{"channel_multiplier": [1], "attn_resolutions": [3]},
        },
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3": {"image_token_id": 91},  # within the vocabulary, as published
    "granite4_vision": {
        **{"downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]]},
        "vision_config": {"hidden_size": 64},
    },
    "janus": {
        "vq_config": {
            **{"base_channels": 32, "latent_channels": 32, "channel_multiplier": [1], "num_embeddings": 16},
        },
    },
    "minimax_m3_vl": {"projector_hidden_size": 32},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_glimmer": _PROJECTOR,
    "muse_spark": {
        **_PROJECTOR,
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    },
    "nemotron_h_omni": {"projector_hidden_size": 32, "vision_hidden_size": 32},
    "ovis2": {"hidden_size": 32, "vocab_size": 96, "vision_config": {"vocab_size": 64}},
    "qwen2_5_omni_thinker": _MARKS,
    "qwen3_omni_moe_thinker": _MARKS,
}

# Text models that a family is also published with.
OTHER_TEXTS: dict[str, tuple[str, str]] = {
    "mistral3 of ministral3": ("mistral3", "ministral3"),
    "mistral3 of mistral4": ("mistral3", "mistral4"),
}

# What older versions of transformers build otherwise, or not at all.
NEW_IN_5_23 = {"cohere_compass", "granite4_vision", "hunyuan_vl"}

# Families whose text model keeps a state, which branches only with a new transformers.
RECURRENT = set()
if not can_branch("qwen3_5_text"):
    RECURRENT |= {"lfm2_vl", "lfm3_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "nemotron_h_omni", "qwen3_5",
                  "qwen3_5_moe"}  # fmt: skip
# Not built here: transformers needs packages that this project has no use for.
NOT_BUILT = {"gemma3n"}
# Their text models are refused.
TEXT_REFUSED = {
    "inkling2", "inkling_mm_model", "unlimited_ocr",
}  # fmt: skip

FAMILIES: tuple[str, ...] = (*sorted(NOT_READ.keys() - NOT_BUILT - TEXT_REFUSED), *OTHER_TEXTS)


def is_built(family: str) -> bool:
    """Whether the installed transformers builds such a model."""
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    known = OTHER_TEXTS.get(family, (family,))[-1] in CONFIG_MAPPING
    return known and (release >= (5, 23) or family not in NEW_IN_5_23)


def text_changes(text_type: str) -> dict[str, Any]:
    """What makes the text model of this type tiny."""
    return TEXTS[text_type] if text_type in TEXTS else SWEEP.get(text_type, {})
