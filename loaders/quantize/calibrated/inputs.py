"""What a layer's matrices are multiplied with: Σ x xᵀ of each, gathered while the layer computes."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(eq=False)
class Gram:
    """Σ x xᵀ, float32 [K, K], of `rows` inputs. Matrices with one input share it."""

    total: Tensor
    rows: int = 0

    def add(self, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        self.total.addmm_(rows.T, rows)
        self.rows += len(rows)


class InputGrams(TorchFunctionMode):
    """Within the block, gathers the inputs of `torch.nn.functional.linear` for the given matrices.

    matrices: contiguous parameters or parts of them, [outputs, inputs], by name. A call that multiplies with several of
    them at once (the gate and up projections of an expert) counts for each.
    """

    def __init__(self, matrices: Mapping[str, Tensor]):
        super().__init__()
        places = sorted((tensor.data_ptr(), tensor.nbytes, name) for name, tensor in matrices.items())
        self._begins = [begin for begin, _, _ in places]
        self._places = places
        self._gram_of_call: dict[tuple[int, int], Gram] = {}
        self._last: tuple[Tensor, Gram] | None = None
        self.grams: dict[str, Gram] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear and not kwargs:
            self._gather(args[0], args[1])
        return function(*args, **(kwargs or {}))

    def _gather(self, inputs: Tensor, weight: Tensor) -> None:
        call = (weight.data_ptr(), weight.nbytes)
        names = self._names(*call)
        if not names or not inputs.numel():
            return
        last, gram = self._last or (None, None)
        known = self._gram_of_call.get(call)
        if gram is None or inputs is not last or known not in (None, gram):
            gram = known or Gram(torch.zeros(weight.shape[1], weight.shape[1], device=weight.device))
            gram.add(inputs)
            self._last = (inputs, gram)
        self._gram_of_call[call] = gram
        self.grams |= dict.fromkeys(names, gram)

    def _names(self, begin: int, nbytes: int) -> list[str]:
        """The matrices that lie within some bytes of memory."""
        first = bisect.bisect_left(self._begins, begin)
        last = bisect.bisect_left(self._begins, begin + nbytes)
        return [name for at, size, name in self._places[first:last] if at + size <= begin + nbytes]
