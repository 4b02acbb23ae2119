"""What the nodes of a tree write to a recurrent state, kept until verification has chosen a path.

Along a path, with G the sum of the decays g from its beginning, the state after node i is

    exp(G_i) S₀ + Σ_j exp(G_i - G_j) k_j δ_jᵀ    over i and its ancestors j

for every rule that decays a state and adds outer products to it; the rules differ in what δ is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Writes:
    """Of m nodes. keys [groups, m, k]; deltas [heads, m, v]; decays, totals: g and G, [heads, m].

    A group of heads has the same keys.
    """

    keys: Tensor
    deltas: Tensor
    decays: Tensor
    totals: Tensor

    def after(self, earlier: Self | None) -> Self:
        """With those of earlier nodes, if any, before these."""
        if earlier is None:
            return self
        return type(self)(*(torch.cat((getattr(earlier, name), own), dim=1) for name, own in vars(self).items()))

    def state_after(self, state: Tensor, path: Tensor) -> Tensor:
        """The state ``[heads, k, v]`` after the nodes `path`, int64 [p], first to last, that follow `state`."""
        totals = self.totals.index_select(1, path)
        last = totals[:, -1:]
        keys = self.keys.index_select(1, path).transpose(1, 2)
        deltas = self.deltas.index_select(1, path) * (last - totals).exp()[..., None]
        added = keys[:, None] @ deltas.unflatten(0, (len(keys), -1))
        return last.exp()[..., None] * state + added.flatten(0, 1)


def corrected(targets: Tensor, weights: Tensor, earlier: Tensor | None) -> Tensor:
    """The δ ``[heads, n, v]`` of n nodes, each its target less the weighted δ of its ancestors: one triangular system.

    targets: [heads, n, v]. weights: [heads, n, m], of all m nodes, 0 where one is no ancestor; the last n columns are
    the nodes. earlier: the δ of the first m - n nodes.
    """
    n, known = targets.shape[1], 0 if earlier is None else earlier.shape[1]
    if earlier is not None:
        targets = targets - weights[:, :, :known] @ earlier
    own = weights[:, :, known:]
    system = own.tril(-1) if n > 1 else torch.zeros_like(own)
    return torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True)


def path_totals(decay: Tensor, earlier: Writes | None, visible: Tensor) -> tuple[Tensor, Tensor]:
    """G of the last nodes, [heads, n], and exp(G_i - G_j) of these and all m, [heads, n, m]; 0 where j is no ancestor.

    decay: [heads, n]. visible: bool [n, m], whether a node is the row's own or one of its ancestors.
    """
    decays = decay if earlier is None else torch.cat((earlier.decays, decay), dim=1)
    totals = decays @ visible.to(decays.dtype).T
    all_totals = totals if earlier is None else torch.cat((earlier.totals, totals), dim=1)
    differences = totals[:, :, None] - all_totals[:, None, :]
    return totals, differences.masked_fill(~visible, -torch.inf).exp()
