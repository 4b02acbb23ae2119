"""Decayed sums of outer products over a tree: Mamba 2's state space (arXiv 2405.21060), lightning attention.

A state S, [keys, values] per head, is decayed, added to and read at every token:

    S ← exp(g) S + k vᵀ;  o = Sᵀ q

In closed form the causal mask becomes the ancestor mask, and decays are summed along each node's path.
"""

from __future__ import annotations

from torch import Tensor

from offload_runtime.model.linear_attention.writes import Writes, path_totals


def over_tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor,
    visible: Tensor,
    earlier: Writes | None = None,
) -> tuple[Tensor, Writes]:
    """The outputs ``[heads, n, v]`` of n nodes, parents before children, and the writes of all m nodes so far.

    query, key: [groups, n, k], of groups of heads. value: [heads, n, v]. decay: [heads, n]. state: [heads, k, v], that
    after the text. visible: bool [n, m], whether a node is the row's own or one of its ancestors; the last n columns
    are the rows. earlier: the writes of the first m - n nodes.
    """
    totals, factors = path_totals(decay, earlier, visible)
    writes = Writes(key, value, decay, totals).after(earlier)
    groups = len(key)
    weights = factors.unflatten(0, (groups, -1)) * (query @ writes.keys.transpose(1, 2))[:, None]
    of_text = (query[:, None] @ state.unflatten(0, (groups, -1))).flatten(0, 1)
    return totals.exp()[..., None] * of_text + weights.flatten(0, 1) @ writes.deltas, writes
