"""Mixtures of experts: the module that holds a layer's experts, and which of them a pass is routed to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

# transformers' argument names for the indices of the routed experts, [tokens, experts per token].
CHOICES = ("top_k_index", "router_indices")


@dataclass(frozen=True, eq=False)
class Experts:
    """A module whose parameters of these names hold `count` experts each, as their first dimension."""

    module: nn.Module
    count: int
    names: frozenset[str]  # relative to the layer's module


def find_experts(layer: nn.Module) -> Experts | None:
    """The experts of a layer, if one module holds them and its arguments say which ones the tokens are routed to."""
    found = [
        (name, module)
        for name, module in layer.named_modules()
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        and position_of_choice(module) is not None
    ]
    if len(found) != 1:
        return None
    ((path, module),) = found
    shapes = {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}
    counts = {shape[0] for shape in shapes.values() if len(shape) == 3}
    if len(counts) != 1 or counts == {1}:
        return None
    (count,) = counts
    prefix = f"{path}." if path else ""
    by_expert = (name for name, shape in shapes.items() if len(shape) > 1 and shape[0] == count)
    return Experts(module, count, frozenset(prefix + name for name in by_expert))


def position_of_choice(module: nn.Module) -> int | None:
    """The argument of a module that says which experts the tokens are routed to; it computes with no others."""
    names = list(signature(module.forward).parameters)
    return next((names.index(name) for name in CHOICES if name in names), None)


def choice_among(arguments: Sequence[Any], named: Mapping[str, Any], position: int | None) -> Tensor | None:
    """The indices of the routed experts in a call's arguments; None where there are none."""
    if position is not None and position < len(arguments):
        return arguments[position]
    return next((named[name] for name in CHOICES if name in named), None)


def routed_among(chosen: Tensor, count: int) -> Tensor:
    """uint8 [count] on the device: 1 for each routed expert. Does not wait for the device."""
    routed = torch.zeros(count, dtype=torch.uint8, device=chosen.device)
    kept = chosen.flatten().to(torch.int64)
    return routed.index_fill_(0, kept.clamp(0, count - 1), 1)
