"""Architectures that cannot be run, and why, by name, before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHAT_RUNS = (
    "Other decoder-only models of transformers run; docs/architectures.md lists those that are tested, such as "
    "Llama, Qwen, Mistral, Mixtral, Gemma, Phi, DeepSeek, GLM, Granite, OLMo, Cohere and gpt-oss"
)

_NO_POSITIONS = "it takes no positions or no cache from outside, so it cannot run over a tree"
_OWN_ATTENTION = "transformers runs it through attention of its own, which takes no tree"
_OWN_CACHE = "it insists on a cache of its own, which cannot be cut back"
_INDEXED = "its attention picks rows of the whole cache by an index, which the branches of a tree would share"
_SEVERAL_STACKS = "its layers are not one stack that is run once"

_CLASSIFIERS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel",
    "ForRewardModel", "ForScoring",
)  # fmt: skip
_LONGEST_CLASS = 80

REFUSED: dict[str, str] = {
    **dict.fromkeys(("bloom", "mpt", "cpmant", "openai-gpt", "xlnet", "xlm"), _NO_POSITIONS),
    **dict.fromkeys(("falcon", "gptj", "gpt_neo", "reformer"), _OWN_ATTENTION),
    **dict.fromkeys(("minimax", "rwkv", "xlstm"), _OWN_CACHE),
    **dict.fromkeys(
        ("axk2", "deepseek_v4", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4"), _INDEXED
    ),
    **dict.fromkeys(("blt", "hrm_text", "longcat_flash"), _SEVERAL_STACKS),
    "doge": "each of its attention heads masks rows of its own, which the branches of a tree would share",
    "inkling2_text": "its convolutions over keys and values do not come out as transformers' own when streamed",
}  # fmt: skip


def why_refused(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot run; None if it may."""
    model_type = config["model_type"]
    if config.get("is_encoder_decoder"):
        reason = "it is an encoder-decoder"
    elif senses := [key for key in ("vision_config", "audio_config") if config.get(key) is not None]:
        reason = f"it is multimodal ({senses[0]})"
    elif model_type in REFUSED:
        reason = REFUSED[model_type]
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
