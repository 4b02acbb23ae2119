"""Copies hidden states of a model's passes, out of the passes that are run anyway, into a buffer made beforehand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loaders.modules.heads import AFTER_NORM
from scheduler.streaming.device_memory import DeviceMemory


def tapped(model: PreTrainedModel, layers: Sequence[nn.Module], taps: Sequence[int]) -> list[nn.Module]:
    """The modules behind which a target's hidden states are taken: see `HeadSkeleton.taps`."""
    assert all(tap == AFTER_NORM or 1 <= tap <= len(layers) for tap in taps), "a tap lies behind a layer"
    return [model.get_decoder() if tap == AFTER_NORM else layers[tap - 1] for tap in taps]


class HiddenStates:
    """The hidden states of the latest pass of a model, after some of its modules, side by side: ``rows [most, width]``.

    sources: modules that give [1, n, hidden], alone, as the first of several outputs, or as `features`; each has its
    share of `width`. most: rows of a pass; a longer one (none is planned) is not captured. dtype: of the hidden states.
    The rows of a pass lie in its order, text after text.
    """

    def __init__(
        self,
        sources: Sequence[nn.Module],
        width: int,
        most: int,
        dtype: torch.dtype,
        memory: DeviceMemory,
    ):
        self.width, self._hidden = width, width // len(sources)
        self.rows = memory.empty(most * self.width * dtype.itemsize).view(dtype).view(most, self.width)
        self._next = 0
        for place, source in enumerate(sources):
            source.register_forward_hook(self._copying(place))

    def begin(self) -> None:
        """A pass begins."""
        self._next = 0

    def take(self, rows: int) -> int | None:
        """The first of the next `rows` rows of the pass, which are one text's; None if they were not captured."""
        first, self._next = self._next, self._next + rows
        return first if self._next <= len(self.rows) else None

    def _copying(self, place: int) -> Callable[[nn.Module, Any, Any], None]:
        columns = slice(place * self._hidden, (place + 1) * self._hidden)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            several = None if isinstance(output, Tensor) else getattr(output, "features", output[0])
            states: Tensor = output if several is None else several
            if states.shape[1] <= len(self.rows):
                self.rows[: states.shape[1], columns] = states[0]

        return hook
