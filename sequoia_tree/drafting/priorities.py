"""How much lower a child's log-priority is than its parent's, from the draft's distribution at the parent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.acceptance.acceptance import BIN_EDGES, MAX_CHILDREN, Acceptance


@dataclass(frozen=True)
class DrawnCosts:
    """For sampled children: by child number and the distribution's largest probability, never by the drawn token.

    table: float32 [bins, most children], `Acceptance.costs`. edges: float32 [bins - 1].
    """

    table: Tensor
    edges: Tensor

    @classmethod
    def measured(cls, acceptance: Acceptance, device: torch.device) -> DrawnCosts:
        """From what was observed of the pair."""
        table = torch.from_numpy(acceptance.costs()).to(device)
        return cls(table, torch.tensor(BIN_EDGES, dtype=torch.float32, device=device))

    def __call__(self, distribution: Tensor, tokens: Tensor) -> Tensor:
        """Costs [m, K] under log-probabilities [m, V], for at most MAX_CHILDREN children."""
        assert tokens.shape[1] <= MAX_CHILDREN
        bins = torch.bucketize(distribution.amax(-1).exp(), self.edges, right=True)
        return self.table[bins, : tokens.shape[1]]


@dataclass(frozen=True)
class LikeliestCosts:
    """For the likeliest tokens of the distribution, in order: -log softmax(log-probabilities / scale) of each token."""

    scale: float

    def __call__(self, distribution: Tensor, tokens: Tensor) -> Tensor:
        """Costs [m, K] under log-probabilities [m, V]."""
        scaled = distribution / self.scale
        return scaled.logsumexp(-1, keepdim=True) - scaled.gather(-1, tokens.clamp(min=0))
