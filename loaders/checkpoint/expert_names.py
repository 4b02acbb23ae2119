"""Mixtures of experts as configs and names of tensors tell them. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# The numbers of experts, under the names that architectures give them.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "experts_per_token")
# Model types whose code does not tell which experts it hits before it computes with all of them.
ALL_EXPERTS_AT_ONCE = {"jetmoe", "llama4", "llama4_text"}

NUMBERED = re.compile(r"\.experts\.\d+\.")


def stated_experts(text_config: Mapping[str, Any]) -> tuple[int, int]:
    """(experts of a layer, those each token goes to); zeros where the config does not say, or all are computed with."""
    count, per_token = (_most_stated(text_config, names) for names in (EXPERTS, EXPERTS_PER_TOKEN))
    if text_config["model_type"] in ALL_EXPERTS_AT_ONCE or not 0 < per_token < count:
        return 0, 0
    return count, per_token


def is_by_expert(name: str, shape: tuple[int, ...], experts: int) -> bool:
    """Whether a tensor of a layer with so many experts is of one of them, or stacks one part of all."""
    stacked = len(shape) > 1 and shape[0] == experts
    return bool(NUMBERED.search(name)) or (stacked and (len(shape) == 3 or ".experts." in name))


def _most_stated(text_config: Mapping[str, Any], names: Iterable[str]) -> int:
    """The number under the first of these names, the largest where layers have one each; 0 where it is none."""
    stated = next((text_config[name] for name in names if text_config.get(name) is not None), 0)
    numbers = stated if isinstance(stated, list) else [stated]
    return max((number for number in numbers if type(number) is int), default=0)
