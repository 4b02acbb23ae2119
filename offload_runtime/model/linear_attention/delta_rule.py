"""The gated delta rule over a tree, in closed form: the causal mask of its chunked form becomes the ancestor mask.

A state S, [keys, values] per head, is decayed, corrected and read at every token (arXiv 2412.06464):

    S ← exp(g) S;  δ = β (v - Sᵀ k);  S ← S + k δᵀ;  o = Sᵀ q

Along a path, with G the sum of the g from its beginning, the state after node i is

    exp(G_i) S₀ + Σ_j exp(G_i - G_j) k_j δ_jᵀ    over i and its ancestors j

So the δ of all nodes solve one triangular system, and the state after any node follows from what the pass has computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Writes:
    """What m nodes write to a state. keys [heads, m, k]; deltas [heads, m, v]; decays, totals [heads, m]: g and G."""

    keys: Tensor
    deltas: Tensor
    decays: Tensor
    totals: Tensor

    def joined(self, others: Writes) -> Writes:
        """Those of further nodes behind these."""
        pairs = ((self.keys, others.keys), (self.deltas, others.deltas), (self.decays, others.decays))
        keys, deltas, decays = (torch.cat(pair, dim=1) for pair in pairs)
        return Writes(keys, deltas, decays, torch.cat((self.totals, others.totals), dim=1))

    def state_after(self, state: Tensor, path: Tensor) -> Tensor:
        """[heads, k, v] after the nodes `path`, int64 [p], from the first to the last; `state` is that before them."""
        totals = self.totals.index_select(1, path)
        last = totals[:, -1:]
        keys = self.keys.index_select(1, path) * (last - totals).exp()[..., None]
        return last.exp()[..., None] * state + keys.transpose(1, 2) @ self.deltas.index_select(1, path)


def over_tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    visible: Tensor,
    earlier: Writes | None = None,
) -> tuple[Tensor, Writes]:
    """The outputs ``[heads, n, v]`` of n nodes, parents before children, and the writes of all m nodes so far.

    query, key: [heads, n, k], the query scaled. value: [heads, n, v]. decay, beta: [heads, n]. state: [heads, k, v],
    that after the text. visible: bool [n, m], whether a node is the row's own or one of its ancestors; the last n
    columns are the rows. earlier: the writes of the first m - n nodes.
    """
    n = query.shape[1]
    decays = decay if earlier is None else torch.cat((earlier.decays, decay), dim=1)
    totals = decays @ visible.to(decays.dtype).T
    known = 0 if earlier is None else earlier.totals.shape[1]
    all_totals = totals if earlier is None else torch.cat((earlier.totals, totals), dim=1)
    factors = (totals[:, :, None] - all_totals[:, None, :]).masked_fill(~visible, -torch.inf).exp()
    keys = key if earlier is None else torch.cat((earlier.keys, key), dim=1)
    weights = beta[..., None] * factors * (key @ keys.transpose(1, 2))  # of the δ of ancestors, in each node's own
    targets = beta[..., None] * (value - totals.exp()[..., None] * (key @ state))
    if earlier is not None:
        targets = targets - weights[:, :, :known] @ earlier.deltas
    system = weights[:, :, known:].tril(-1) if n > 1 else torch.zeros_like(weights[:, :, known:])
    deltas = torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True)
    writes = Writes(key, deltas, decay, totals)
    writes = writes if earlier is None else earlier.joined(writes)
    read = (query @ keys.transpose(1, 2)) * factors
    return totals.exp()[..., None] * (query @ state) + read @ writes.deltas, writes
