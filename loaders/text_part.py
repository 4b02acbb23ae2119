"""The text part of multimodal checkpoints: which families have one, and which tensors it is. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loaders.json_files import read_object

# Multimodal families whose text part transformers runs alone, by `model_type`, and what of their input is not read.
NOT_READ: dict[str, str] = {
    **dict.fromkeys(
        ("aria", "aya_vision", "cohere2_vision", "cohere_compass", "cosmos3_edge", "deepseek_vl", "deepseek_vl_hybrid",
         "dots3_note", "emu3", "ernie4_5_vl_moe", "exaone4_5", "fuyu", "gemma3", "glm46v", "glm4v", "glm4v_moe",
         "glm5_next", "glm_ocr", "glmga", "got_ocr2", "granite4_vision", "granite_docling", "hunyuan_vl",
         "hyperclovax_vision_v2", "idefics2", "idefics3", "inkling2", "inkling_mm_model", "internvl", "janus",
         "kimi_k25", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llama4", "llava", "llava_next", "llava_next_video",
         "llava_onevision", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral3",
         "mistral_large4", "mllama", "molmo2", "muse_glimmer", "ovis2", "paddleocr_vl", "pp_chart2table",
         "qianfan_ocr", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp",
         "smolvlm", "step3p7", "unlimited_ocr", "video_llama_3", "video_llava", "vipllava"),
        "images are not read",
    ),
    **dict.fromkeys(
        ("gemma3n", "gemma4", "gemma4_unified", "muse_spark", "nemotron_h_omni", "qwen2_5_omni_thinker",
         "qwen3_omni_moe_thinker"),
        "images and audio are not read",
    ),
    **dict.fromkeys(
        ("fun_asr_nano", "glmasr", "granite_speech", "granite_speech_plus", "qwen3_asr", "voxtral"),
        "audio is not read",
    ),
}  # fmt: skip

# Words in a name before its first number: of the text model, and of what only images and audio pass through.
_TEXT = re.compile(r"(^|\.)(language_model|text_model|lm_head)(\.|$)")
_OTHER = re.compile(
    r"(^|\.)(visual\w*|\w*vision\w*|vit\w*|encoder|image\w*|video\w*|audio\w*|sound\w*|mlp1|embed_(vision|audio)|vqmodel|gen\w*_\w+|"
    r"\w*projector\w*|mlp_AR|adaptor|adapter|connector|aligner|\w*merger|patch_merge\w*|\w*resampler\w*)(\.|$)"
)
_NUMBER = re.compile(r"\.(\d{1,6})\.")


def text_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the text model in a config, which may be nested in it; without them, those around it."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return {**config}
    kind = text.get("model_type")
    return {**config, **text, "model_type": kind if isinstance(kind, str) else config.get("model_type")}


def layers_for_images(config: Mapping[str, Any]) -> frozenset[int]:
    """The numbers of decoder layers that text does not pass through: Llama 3.2's, which attend to images."""
    numbers = text_values(config).get("cross_attention_layers")
    return frozenset(number for number in numbers if type(number) is int) if isinstance(numbers, list) else frozenset()


def used_names(directory: Path) -> Callable[[str], bool]:
    """Whether a tensor is used, by its name: all are, except what a multimodal model has beside its text part."""
    try:
        config = read_object(directory / "config.json")
    except (OSError, ValueError):
        return lambda name: True  # whoever needs the config reports what is wrong with it
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in NOT_READ:
        return lambda name: True
    unused = layers_for_images(config)
    return lambda name: _is_text(name, unused)


def _is_text(name: str, unused: frozenset[int]) -> bool:
    head, *number = _NUMBER.split(name, maxsplit=1)[:2]
    return (bool(_TEXT.search(head)) or not _OTHER.search(head)) and not (number and int(number[0]) in unused)
