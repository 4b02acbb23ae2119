"""RoPE scaling: how far it extends a model's context, and how a user sets it. Imports no torch.

A config states it as `rope_scaling`, or as `rope_parameters` for all layers or for each type of layer:
https://huggingface.co/docs/transformers/internal/rope_utils. As in vLLM, YaRN (arXiv 2309.00071), linear and
dynamic factors multiply the positions that the model was trained for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from loaders.errors import UnsupportedModelError

Config = dict[str, Any]

FACTORS = ("yarn", "linear", "dynamic")
KINDS = (*FACTORS, "llama3", "longrope", "default")
_BASE = {"rope_theta", "partial_rotary_factor", "alpha"}  # apply with and without scaling
_NUMBERS = {
    *("factor", "rope_theta", "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow", "alpha"),
    *("mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_SCALING = {*_NUMBERS, "rope_type", "type", "truncate", "short_factor", "long_factor"} - _BASE
_KEYS = {*_NUMBERS, "rope_type", "truncate", "short_factor", "long_factor"}
_FORMS = "KIND:FACTOR or KIND:FACTOR:ORIGINAL with yarn, linear or dynamic; none; or transformers' rope_scaling as JSON"

NO_POSITION_LIMIT = 2**31 - 1  # for configs that state none

# Models with position embeddings in a table, or with none.
NOT_ROTARY = {
    "biogpt", "codegen", "ctrl", "falcon_mamba", "gpt-sw3", "gpt2", "gpt_bigcode", "jamba", "kimi_linear", "mamba",
    "mamba2", "nemotron_h", "opt", "xglm",
}  # fmt: skip
# Their max_position_embeddings already count a linear factor.
_COUNTED = {"gemma3", "gemma3_text"}
_ONE_LAYER_TYPE = "full_attention"  # is scaled if layer types differ
_LOCAL_LAYERS = {"sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class RopeScaling:
    """Replaces the scaling in a config; `values` in transformers' terms, `text` as the user wrote it."""

    values: tuple[tuple[str, Any], ...]
    text: str

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> RopeScaling:
        """From "yarn:4", "yarn:4:32768", "none", JSON text, or a mapping. Raises ValueError with the reason."""
        text = value if isinstance(value, str) else json.dumps(dict(value))
        values = _from_json(text) if text.lstrip().startswith("{") else _from_words(text)
        return cls(tuple(sorted(_checked(values).items())), text)

    def applied(self, config: Config) -> Config:
        """The config with this scaling instead of its own; the RoPE base stays.

        If layer types have their own RoPE, that of full attention is scaled. Raises UnsupportedModelError for models
        without RoPE.
        """
        if not is_rotary(config["model_type"]):
            raise no_rotations(config["model_type"], self)
        if isinstance(text := config.get("text_config"), dict):
            return {**config, "text_config": self.applied({"model_type": config["model_type"], **text})}
        parameters = config.get("rope_parameters")
        kept = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_parameters")}
        if _by_layer_type(parameters):
            own = self._over(parameters.get(_ONE_LAYER_TYPE), config)
            return {**kept, "rope_parameters": {**parameters, _ONE_LAYER_TYPE: own}}
        return {**kept, "rope_scaling": self._over(config.get("rope_scaling") or parameters, config)}

    def _over(self, stated: Any, config: Config) -> Config:
        stated = stated if isinstance(stated, dict) else {}
        base = {key: value for key, value in stated.items() if key not in _SCALING}
        values = {**base, **dict(self.values)}
        if values["rope_type"] == "yarn" and "original_max_position_embeddings" not in values:
            original = stated.get("original_max_position_embeddings") or config.get("max_position_embeddings")
            values["original_max_position_embeddings"] = original
        return values


def no_rotations(model_type: str, scaling: RopeScaling) -> UnsupportedModelError:
    """The error for models that cannot be scaled."""
    return UnsupportedModelError(f"{model_type} has no rotary positions that --rope-scaling {scaling.text} could scale")


def is_rotary(model_type: str) -> bool:
    """Whether such models use RoPE, which can be scaled."""
    return model_type not in NOT_ROTARY


def extended_positions(text: Config, limit: int) -> tuple[int, str | None]:
    """The positions that a text config with this `limit` allows, and the scaling that extended them.

    If layer types have their own RoPE, the minimum over those with full attention.
    """
    if not is_rotary(text["model_type"]):
        return limit, None
    return min((_extended(stated, text, limit) for stated in _stated(text)), key=lambda found: found[0])


def _stated(text: Config) -> list[Config]:
    """The RoPE parameters stated for full attention."""
    scaling, parameters = text.get("rope_scaling"), text.get("rope_parameters")
    if not _by_layer_type(parameters):
        stated = scaling or parameters
        return [stated if isinstance(stated, dict) else {}]
    layers = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if isinstance(scaling, dict):
        layers[_ONE_LAYER_TYPE] = {**layers.get(_ONE_LAYER_TYPE, {}), **scaling}
    return [stated for name, stated in layers.items() if name not in _LOCAL_LAYERS] or [{}]


def _by_layer_type(parameters: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values())


def _extended(stated: Config, text: Config, limit: int) -> tuple[int, str | None]:
    kind, factor = stated.get("rope_type", stated.get("type")), stated.get("factor")
    if kind not in FACTORS or "long_factor" in stated or not _is_factor(factor):
        return limit, None
    if kind == "linear" and text["model_type"] in _COUNTED:
        return limit, None
    factor = min(factor, NO_POSITION_LIMIT)
    original = limit
    if kind == "yarn":
        found: Any = text.get("original_max_position_embeddings") or stated.get("original_max_position_embeddings")
        original = found if type(found) is int and found > 0 else limit
    positions = int(original * factor)
    if positions <= limit:
        return limit, None
    return min(positions, NO_POSITION_LIMIT), f"{original}, extended {factor:g} times by {kind} scaling"


def _is_factor(value: Any) -> TypeGuard[float]:
    """Whether it is a number ≥ 1; an integer may be too large for a float."""
    return type(value) in (int, float) and value >= 1 and (type(value) is int or math.isfinite(value))


def _from_words(text: str) -> Config:
    kind, *numbers = text.strip().split(":")
    if kind == "none" and not numbers:
        return {"rope_type": "default"}
    if kind not in FACTORS or len(numbers) not in (1, 2):
        raise ValueError(f"{text!r} is not {_FORMS}")
    try:
        values: Config = {"rope_type": kind, "factor": float(numbers[0])}
        if len(numbers) == 2:
            values["original_max_position_embeddings"] = int(numbers[1])
    except ValueError:
        raise ValueError(f"{text!r} is not {_FORMS}") from None
    return values


def _from_json(text: str) -> Config:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text!r} is invalid JSON; it must be {_FORMS}") from None
    if "type" in values:
        values.setdefault("rope_type", values.pop("type"))
    return values


def _checked(values: Config) -> Config:
    kind = values.get("rope_type")
    if kind not in KINDS:
        raise ValueError(f"rope_type {kind!r} is none of {', '.join(KINDS)}")
    if unknown := [key for key in values if key not in _KEYS]:
        raise ValueError(f"{unknown[0]!r} is no rope parameter; there are {', '.join(sorted(_KEYS))}")
    if kind in FACTORS and not _is_factor(values.get("factor")):
        raise ValueError(f"the factor of {kind} scaling must be a number from 1 up, not {values.get('factor')!r}")
    for key in _NUMBERS & values.keys():
        number = values[key]
        if type(number) not in (int, float) or not 0 < number < NO_POSITION_LIMIT:
            raise ValueError(f"{key} must be a positive number, not {number!r}")
    if type(values.get("original_max_position_embeddings", 1)) is not int:
        raise ValueError("original_max_position_embeddings must be a whole number")
    return values
