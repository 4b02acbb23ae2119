"""The weight of a linear layer of which only a code is known, and which is multiplied as such."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from loaders.dequantize.stacks import Product, approximate_code
from loaders.lossless.bins import GROUP, Bins
from loaders.modules.layout import TensorPlace

# What is asked of a weight without reading its values; of its other properties some are views of them.
_READS_NO_VALUES = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "is_cuda", "ndim", "requires_grad")),
        *(Tensor.dim, Tensor.size, torch.empty_like),
    )
)


class CodedWeight(Tensor):
    """A view of the memory that its code is decoded to by any operation but a product with few rows.

    `F.linear` with up to 64 rows of the weight's dtype reads the code alone, and writes no weight.
    """

    _is_param = True  # of nn.Parameter: modules take it for one
    _memory: Tensor
    _bins: Bins
    _code: tuple[Tensor, Tensor]
    _multiply: Product

    @classmethod
    def of(cls, memory: Tensor, bins: Bins, code: tuple[Tensor, Tensor], multiply: Product) -> CodedWeight:
        """memory [outputs, inputs], contiguous. code: and its tops, as `approximate_code` takes them."""
        weight = memory.as_subclass(cls)
        weight._memory, weight._bins, weight._code, weight._multiply = memory, bins, code, multiply
        return weight

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear and (product := _product(*args, **named)) is not None:
                return product
            if function not in _READS_NO_VALUES:
                for each in tree_iter((args, named)):
                    if isinstance(each, cls):
                        approximate_code(each._bins, *each._code, each._memory.view(-1))
            return function(*args, **named)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not isinstance(weight, CodedWeight) or input.dtype != weight.dtype:
        return None
    return weight._multiply(weight._bins, *weight._code, input, bias)


def can_multiply(layer: nn.Module, place: TensorPlace) -> bool:
    """Whether a tensor of a layer is the weight of a linear one, in whole groups."""
    owner, _, leaf = place.name.rpartition(".")
    whole = len(place.shape) == 2 and place.shape[1] % GROUP == 0 and not place.transposed
    return whole and leaf == "weight" and isinstance(layer.get_submodule(owner), nn.Linear)
