"""Runs texts through a model layer by layer: every text through one layer, then every text through the next.

A layer is called as the model calls it. To find out how, the model runs with layers that only record their arguments
and pass their input on. That shows, too, whether what goes from layer to layer is all that changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loaders.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a layer besides its input, which are the same for all texts of one length."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        result = layer(hidden, *self.args, **self.kwargs)
        return result[0] if isinstance(result, tuple) else result


def record_calls(
    model: PreTrainedModel, layers: Sequence[nn.Module], texts: Sequence[Tensor]
) -> tuple[list[Call], list[Tensor]]:
    """How each layer is called, and the input of the first one for each text, [1, n, hidden].

    texts: token ids [1, n], all of one length, on the device of what is outside of the layers. Raises
    UnsupportedModelError if a layer needs more of a text than the output of the one before.
    """
    calls: list[Call | None] = [None] * len(layers)
    inputs: list[Tensor] = []
    passed: list[Tensor | None] = [None]

    def recorder(number: int) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if number and hidden is not passed[0]:
                raise _Unexpected
            before = calls[number]
            if before is not None and not (_same(before.args, args) and _same(before.kwargs, kwargs)):
                raise _Unexpected
            calls[number] = before or Call(args, kwargs)
            if not number:
                inputs.append(hidden)
            passed[0] = hidden
            return hidden

        return forward

    for number, layer in enumerate(layers):
        layer.forward = recorder(number)
    try:
        for text in texts:
            model(input_ids=text, use_cache=False, logits_to_keep=1)
    except (_Unexpected, *_MISSED) as error:
        raise UnsupportedModelError(
            f"{model.config.name_or_path or type(model).__name__}: its layers cannot be run one by one over a "
            "calibration text: they need more than the output of the layer before. Pack it without --calibration."
        ) from error
    finally:
        for layer in layers:
            del layer.forward
    return [call for call in calls if call is not None], inputs


class _Unexpected(Exception):
    pass


_MISSED = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
)  # raised by models whose layers give more than one result


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return one is other or bool(one == other)
