"""Recognizes mixtures of experts in configs and tensor names. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Config names for the number of experts, by architecture.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "experts_per_token", "top_k_experts")
# Model types whose code does not expose the routed experts before it computes with all of them.
ALL_EXPERTS_AT_ONCE = {"jetmoe", "llama4", "llama4_text"}

NUMBERED = re.compile(r"\.experts\.\d+\.")


def stated_experts(text_config: Mapping[str, Any]) -> tuple[int, int]:
    """(experts per layer, experts per token); zeros if the config states none, or if all are computed."""
    count, per_token = (_most_stated(text_config, names) for names in (EXPERTS, EXPERTS_PER_TOKEN))
    if text_config["model_type"] in ALL_EXPERTS_AT_ONCE or not 0 < per_token < count:
        return 0, 0
    return count, per_token


def is_by_expert(name: str, shape: tuple[int, ...], experts: int) -> bool:
    """Whether a tensor belongs to one of the layer's `experts`, or stacks a matrix of all of them."""
    stacked = len(shape) > 1 and shape[0] == experts
    return bool(NUMBERED.search(name)) or (stacked and (len(shape) == 3 or ".experts." in name))


def _most_stated(text_config: Mapping[str, Any], names: Iterable[str]) -> int:
    """The number under the first of these names, the largest if it is per layer; 0 if it is no number."""
    stated = next((text_config[name] for name in names if text_config.get(name) is not None), 0)
    numbers = stated if isinstance(stated, list) else [stated]
    return max((number for number in numbers if type(number) is int), default=0)
