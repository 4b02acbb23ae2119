"""Architectures that cannot be run, and why, by name, before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loaders.checkpoint.indexed import INDEXED_SINCE, can_index, indexes
from loaders.text_part import NOT_READ, text_values

WHAT_RUNS = (
    "Other decoder-only models of transformers run; docs/architectures.md lists those that are tested, such as "
    "Llama, Qwen, Mistral, Mixtral, Gemma, Phi, DeepSeek, GLM, Granite, OLMo, Cohere and gpt-oss"
)

_NO_POSITIONS = "it takes no positions or no cache from outside, so it cannot run over a tree"
_OWN_ATTENTION = "transformers runs it through attention of its own, which takes no tree"
_OWN_CACHE = "it insists on a cache of its own, which cannot be cut back"
_SEVERAL_STACKS = "its layers are not one stack that is run once"
_CONVOLUTIONS = "its convolutions over keys and values do not come out as transformers' own when streamed"
_NEEDS_INPUT = "transformers runs it with an image or with sound alone"
_ENCODER_DECODER = "it is an encoder-decoder"
_TOGETHER = "transformers does not run its text part alone"
_TIMM = "transformers builds it only with the vision encoders of the package timm"
_SEVERAL_MODELS = "it is several models in one, whose parts transformers does not run alone"

_CLASSIFIERS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel",
    "ForRewardModel", "ForScoring",
)  # fmt: skip
_LONGEST_CLASS = 80
_SENSES = ("vision_config", "audio_config")

REFUSED: dict[str, str] = {
    **dict.fromkeys(("bloom", "mpt", "cpmant", "openai-gpt", "xlnet", "xlm"), _NO_POSITIONS),
    **dict.fromkeys(("falcon", "gptj", "gpt_neo", "reformer"), _OWN_ATTENTION),
    **dict.fromkeys(("rwkv", "xlstm"), _OWN_CACHE),
    **dict.fromkeys(("blt", "hrm_text", "longcat_flash"), _SEVERAL_STACKS),
    "doge": "each of its attention heads masks rows of its own, which the branches of a tree would share",
    **dict.fromkeys(("inkling_text", "inkling2_text"), _CONVOLUTIONS),
    "unlimited_ocr_text": _OWN_CACHE,
    # Multimodal models without a text part that could be run.
    **dict.fromkeys(
        ("blip", "blip-2", "deepseek_ocr2", "evolla", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5",
         "kyutai_speech_to_text", "voxtral_realtime"),
        _NEEDS_INPUT,
    ),
    **dict.fromkeys(
        ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), _ENCODER_DECODER
    ),
    **dict.fromkeys(
        ("chameleon", "git", "idefics", "moss_transcribe_diarize", "nemo_speechlm", "phi4_multimodal", "qwen2_audio",
         "vibevoice_asr"),
        _TOGETHER,
    ),
    **dict.fromkeys(("fast_vlm", "perception_lm"), _TIMM),
    **dict.fromkeys(("cosmos3_omni", "qwen2_5_omni", "qwen3_omni_moe"), _SEVERAL_MODELS),
    "diffusion_gemma": "it writes blocks of text by diffusion, not token by token",
    "paligemma": "it counts positions from one, and its text from both sides",
    "pi0": "it moves robots",
    "shieldgemma2": "it gives scores for an image and writes no text",
}  # fmt: skip


def why_refused(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot run; None if it may."""
    model_type = config["model_type"]
    if config.get("is_encoder_decoder"):
        reason = "it is an encoder-decoder"
    elif known := next((kind for kind in (model_type, text_values(config)["model_type"]) if kind in REFUSED), None):
        model_type, reason = known, REFUSED[known]
    elif indexes(text_values(config)["model_type"]) and not can_index():
        reason = "its indexed attention runs from transformers {}.{} on".format(*INDEXED_SINCE)
    elif model_type not in NOT_READ and (senses := [key for key in _SENSES if config.get(key) is not None]):
        reason = f"it is multimodal ({senses[0]}), and its text part is not among those that are known to run alone"
    elif classifier := _classifier(config):
        reason = f"{classifier} gives scores for a text and has no head that writes one"
    else:
        return None
    return f"{model_type} cannot be run: {reason}. {WHAT_RUNS}."


def _classifier(config: Mapping[str, Any]) -> str | None:
    """The class that config.json names, if it is only a classifier."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    return name if name.endswith(_CLASSIFIERS) and len(name) <= _LONGEST_CLASS else None
