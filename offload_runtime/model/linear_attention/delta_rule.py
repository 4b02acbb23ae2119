"""The gated delta rule over a tree, in closed form: the causal mask of its chunked form becomes the ancestor mask.

A state S, [keys, values] per head, is decayed, corrected and read at every token (arXiv 2412.06464):

    S ← exp(g) S;  δ = β (v - Sᵀ k);  S ← S + k δᵀ;  o = Sᵀ q

The δ of all nodes solve one triangular system, and the state after any node follows from them (`writes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.writes import Writes, corrected, path_totals


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
    totals, factors = path_totals(decay, earlier, visible)
    keys = key if earlier is None else torch.cat((earlier.keys, key), dim=1)
    weights = beta[..., None] * factors * (key @ keys.transpose(1, 2))  # of the δ of ancestors, in each node's own
    targets = beta[..., None] * (value - totals.exp()[..., None] * (key @ state))
    deltas = corrected(targets, weights, None if earlier is None else earlier.deltas)
    writes = Writes(key, deltas, decay, totals).after(earlier)
    read = (query @ keys.transpose(1, 2)) * factors
    return totals.exp()[..., None] * (query @ state) + read @ writes.deltas, writes
