"""Kimi's delta rule over a tree: a decay for every channel of the keys (arXiv 2510.26692).

As the gated delta rule (`delta_rule`), with exp(g) a vector over the rows of the state [keys, values]:

    S ← diag(exp(g)) S;  δ = β (v - Sᵀ k);  S ← S + k δᵀ;  o = Sᵀ q

Factors exp(G_i - G_j) of nodes and their ancestors differ by channel. They are taken pair by pair, some heads at a
time: as a product of exp(G_i) and exp(-G_j) they would leave the range of floats after a few strong decays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.writes import Writes, corrected

_BLOCK = 1 << 21  # factors held at once: 8 MiB in float32, and as much for their products


class ChannelWrites(Writes):
    """Of m nodes. keys, decays, totals: g and G, each [heads, m, k]; deltas [heads, m, v]."""

    def state_after(self, state: Tensor, path: Tensor) -> Tensor:
        totals = self.totals.index_select(1, path)
        last = totals[:, -1:]
        keys = self.keys.index_select(1, path) * (last - totals).exp()
        return last.exp().transpose(1, 2) * state + keys.transpose(1, 2) @ self.deltas.index_select(1, path)


def over_tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    visible: Tensor,
    earlier: ChannelWrites | None = None,
) -> tuple[Tensor, ChannelWrites]:
    """The outputs ``[heads, n, v]`` of n nodes, parents before children, and the writes of all m nodes so far.

    query, key, decay: [heads, n, k], the query scaled. value: [heads, n, v]. beta: [heads, n]. state: [heads, k, v],
    that after the text. visible: bool [n, m], whether a node is the row's own or one of its ancestors; the last n
    columns are the rows. earlier: the writes of the first m - n nodes.
    """
    decays = decay if earlier is None else torch.cat((earlier.decays, decay), dim=1)
    totals = visible.to(decays.dtype) @ decays
    all_totals = totals if earlier is None else torch.cat((earlier.totals, totals), dim=1)
    keys = key if earlier is None else torch.cat((earlier.keys, key), dim=1)
    corrections, reads = _decayed_products(key, query, keys, totals, all_totals, visible)
    of_text, corrections = totals.exp(), beta[..., None] * corrections
    targets = beta[..., None] * (value - (key * of_text) @ state)
    deltas = corrected(targets, corrections, None if earlier is None else earlier.deltas)
    writes = ChannelWrites(key, deltas, decay, totals).after(earlier)
    return (query * of_text) @ state + reads @ writes.deltas, writes


def _decayed_products(
    key: Tensor, query: Tensor, keys: Tensor, totals: Tensor, all_totals: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the last n keys and queries with all m keys, decayed between the two: each ``[heads, n, m]``."""
    heads, m = keys.shape[:2]
    step = max(1, _BLOCK // (len(visible) * m * keys.shape[2]))
    blocks = []
    for begin in range(0, heads, step):
        part = slice(begin, begin + step)
        differences = totals[part, :, None] - all_totals[part, None]
        decayed = differences.masked_fill_(~visible[:, :, None], -torch.inf).exp_().mul_(keys[part, None])
        blocks.append(decayed @ torch.stack((key[part], query[part]), dim=-1))
    products = torch.cat(blocks)
    return products[..., 0], products[..., 1]
