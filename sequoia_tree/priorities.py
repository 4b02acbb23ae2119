"""What a child loses of its parent's log-priority in an adaptive tree, from the draft's law at the parent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.acceptance import BIN_EDGES, MAX_CHILDREN, Acceptance

# Under traversal a path of j first children arrives with the mean weight exp(-c · 1.2 · j^-0.28), where c is the sum of
# their costs: ratios above 1 make up for those below, the more the longer the path. Measured on the bundled pair and on
# its target drafting for itself in 3 and in 4 bits, for j from 1 to 24; below any later child it begins anew.
_SPAN = 1.2
_FADING = 0.28
_LONGEST = 256  # runs counted; what is beyond costs as little


@dataclass(frozen=True)
class DrawnCosts:
    """For children drawn from the law: by child number and the law's largest probability, never by the token drawn.

    table: float32 [bins, most children], `Acceptance.costs`. edges: float32 [bins - 1]. steps: float32 [runs], what a
    first child's cost is multiplied with after so many first children in a row.
    """

    table: Tensor
    edges: Tensor
    steps: Tensor

    @classmethod
    def measured(cls, acceptance: Acceptance, device: torch.device) -> DrawnCosts:
        """From what was observed of the pair."""
        table = torch.from_numpy(acceptance.costs()).to(device)
        path_costs = _SPAN * torch.arange(_LONGEST + 1, dtype=torch.float32, device=device) ** (1 - _FADING)
        return cls(table, torch.tensor(BIN_EDGES, dtype=torch.float32, device=device), path_costs.diff())

    def __call__(self, law: Tensor, tokens: Tensor, runs: Tensor) -> Tensor:
        """Costs [m, K] under log-laws [m, V], for at most MAX_CHILDREN children; runs: int64 [m], see `Frontier`."""
        assert tokens.shape[1] <= MAX_CHILDREN
        bins = torch.bucketize(law.amax(-1).exp(), self.edges, right=True)
        costs = self.table[bins, : tokens.shape[1]]
        costs[:, 0] *= self.steps[runs.clamp(max=_LONGEST - 1)]
        return costs.cummax(-1).values


@dataclass(frozen=True)
class LikeliestCosts:
    """For the likeliest tokens of the law, in order: -log softmax(log-law / scale) of each token itself."""

    scale: float

    def __call__(self, law: Tensor, tokens: Tensor, runs: Tensor) -> Tensor:
        """Costs [m, K] under log-laws [m, V], however long the runs, int64 [m]."""
        scaled = law / self.scale
        return scaled.logsumexp(-1, keepdim=True) - scaled.gather(-1, tokens.clamp(min=0))
