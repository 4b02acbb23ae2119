"""The distributions that a tree is verified against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Probabilities of a block that is worked on at once. On a processor 16 MB of float32, which stay near its caches; on a
# GPU, where each block costs launches, 64 MB.
_BLOCK, _GPU_BLOCK = 1 << 22, 1 << 24


@dataclass(frozen=True)
class Distributions:
    """The distributions that a tree is verified against, each a function of node ids, int64 [m].

    They return new float32 tensors [m, V] on the generator's device, whose rows sum to 1: `target` the distribution of
    the token after each node, `draft` the distribution from which the children of each node were drawn. draft_row: the
    latter for one node, [V], which may be a view and is not written to.
    """

    target: Callable[[Tensor], Tensor]
    draft: Callable[[Tensor], Tensor]
    vocab_size: int
    draft_row: Callable[[int], Tensor] | None = None

    def most_rows(self, device: torch.device) -> int:
        """Rows to ask for at once."""
        return max(1, (_GPU_BLOCK if device.type == "cuda" else _BLOCK) // self.vocab_size)
