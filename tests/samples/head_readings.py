"""What heads compute over a text alone, to compare with what they computed while it was written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.samples.tiny_models import reference


class Rows:
    """A cache that appends."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: object) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            keys = torch.cat((self.kept[layer][0], keys), dim=2)
            values = torch.cat((self.kept[layer][1], values), dim=2)
        self.kept[layer] = keys, values
        return keys, values

    def get_mask_sizes(self, rows: int, layer: int) -> tuple[int, int]:
        return (self.kept[layer][0].shape[2] if layer in self.kept else 0) + rows, 0


def tapped_states(directory: Path, text: Sequence[int], taps: Sequence[int]) -> Tensor:
    """The target's hidden states after so many layers, side by side, at all tokens of a text but the last."""
    model, states = reference(directory), {}
    hooks = [
        layer.register_forward_hook(lambda module, args, out, number=number: states.__setitem__(number + 1, out))
        for number, layer in enumerate(model.model.layers)
    ]
    model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return torch.cat([states[tap][0, :-1] for tap in taps], dim=-1)


def furthest(wanted: Callable[[list[int]], Tensor], read: Sequence[tuple[list[int], Tensor]]) -> float:
    """The largest difference of logits that both find possible; inf where they differ in that.

    wanted: the logits after a text. read: texts with the logits that a head gave after them.
    """
    worst = 0.0
    for text, logits in read:
        alone = wanted(text)
        possible = alone.isfinite()
        if not torch.equal(possible, logits.isfinite()):
            return float("inf")
        worst = max(worst, (logits - alone)[possible].abs().max().item())
    return worst
