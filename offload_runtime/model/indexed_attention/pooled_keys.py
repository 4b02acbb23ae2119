"""Indexers that score one entry for each block of keys and select the keys of the best blocks: GLM-5.3 and Qwen4-exp.

A block counts once it is complete; the keys of the block that a row is in are always selected.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offload_runtime.model.attention import current_rows
from offload_runtime.model.indexed_attention.pooled_rows import Entries, Pool, texts_of_pass


def selected_keys(scores: Tensor, entries: Entries, rate: int, blocks: int) -> Tensor:
    """int64 ``[1, n, any]``: the keys of each row's best `blocks` blocks, and those of its own block; -1 for none.

    scores: ``[1, n, e]``. rate: keys of a block.
    """
    best = scores.masked_fill(~entries.visible, -torch.inf).topk(min(blocks, scores.shape[-1]), dim=-1).indices[0]
    inside = torch.arange(rate, device=scores.device)
    in_blocks = (entries.begins[best][..., None] + inside).flatten(1)
    chosen = entries.visible.gather(1, best).repeat_interleave(rate, dim=1)
    ends = current_rows().row_positions[:, None] + 1
    in_tail = ends - ends % rate + inside[:-1]
    positions = torch.cat((in_blocks, in_tail), dim=1)
    known = torch.cat((chosen, in_tail < ends), dim=1)
    keys = torch.cat([rows.columns_at(positions[own]) + span.start for rows, (own, span) in texts_of_pass()])
    return keys.masked_fill(~known, -1)[None]


class GatedPool(Pool):
    """Of GLM-5.3: keys are weighted by gates, for each of their values."""

    def __init__(self, indexer: Any):
        super().__init__("index", indexer.index_kpool, indexer.index_kpool, indexer.head_dim)
        self._places = indexer.index_kpool_compress_ape

    def weighted(self, pooled: Tensor, windows: Tensor) -> Tensor:
        keys, gates = pooled[windows.clamp(min=0)].split(self._width, dim=-1)
        weights = (gates.float() + self._places.float()).softmax(dim=1)
        return (weights.to(keys.dtype) * keys).sum(dim=1)

    def finished(self, means: Tensor, begins: Tensor, first_keys: Tensor, by_key: Sequence[Tensor]) -> Tensor:
        return means


class SelectsGatedBlocks:
    """Stands for the forward of GLM-5.3's indexer."""

    def __init__(self, indexer: Any):
        self._indexer = indexer

    def __call__(self, hidden_states: Tensor, q_resid: Tensor, past_key_values: Any, **_: object) -> Tensor:
        """int32 ``[1, n, any]``: the selected keys; -1 for none."""
        indexer, count = self._indexer, hidden_states.shape[1]
        pool = GatedPool(indexer)  # its parameters are bound anew in every pass
        query = indexer.wq_b(q_resid).view(1, count, -1, indexer.head_dim)
        key, gate = (
            indexer.k_norm(indexer.wk(hidden_states)),
            F.linear(hidden_states, indexer.index_kpool_compress_gate),
        )
        entries = pool.entries(torch.cat((key, gate), dim=-1), past_key_values.layers[indexer.layer_idx])
        scores = F.relu(query.float() @ entries.values.float().transpose(-1, -2)[:, None] * indexer.softmax_scale)
        weights = indexer.weights_proj(hidden_states).float() * indexer.n_heads**-0.5
        scores = (weights[:, :, None] @ scores)[:, :, 0]
        keys = selected_keys(scores, entries, pool.rate, indexer.index_topk // pool.rate)
        if not indexer.index_kpool_always_select_tail:
            keys = keys[..., : 1 - pool.rate or None]
        return keys.to(torch.int32)


class MeanPool(Pool):
    """Of Qwen4-exp: the mean of keys, normalized and rotated to the block's first position."""

    def __init__(self, indexer: Any):
        super().__init__("index", indexer.compress_ratio, indexer.compress_ratio, indexer.index_head_dim)
        self._normalize = indexer.k_layernorm
        self._rotate = sys.modules[type(indexer).__module__].apply_rotary_pos_emb

    def weighted(self, pooled: Tensor, windows: Tensor) -> Tensor:
        return pooled[windows.clamp(min=0)].float().mean(dim=1).to(pooled.dtype)

    def finished(self, means: Tensor, begins: Tensor, first_keys: Tensor, by_key: Sequence[Tensor]) -> Tensor:
        cos, sin = (one[first_keys] for one in by_key)
        entries: Tensor = self._rotate(self._normalize(means)[:, None], cos=cos, sin=sin)
        return entries[:, 0]


class SelectsMeanBlocks:
    """Stands for the forward of Qwen4-exp's indexer."""

    def __init__(self, indexer: Any):
        self._indexer = indexer
        self._rotate = sys.modules[type(indexer).__module__].apply_rotary_pos_emb

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor,
        past_key_values: Any,
    ) -> Tensor:
        """bool ``[1, 1, n, k]``: the selected keys. position_embeddings: of all keys, then of the rows of the pass."""
        indexer, count = self._indexer, hidden_states.shape[1]
        pool = MeanPool(indexer)
        cos, sin = position_embeddings
        heads = indexer.index_n_heads * indexer.index_head_dim
        query, key = indexer.index_qk_proj(hidden_states).split((heads, indexer.index_head_dim), dim=-1)
        query = indexer.q_layernorm(query.view(1, count, -1, indexer.index_head_dim))
        query = self._rotate(query, cos=cos[:, -count:], sin=sin[:, -count:], unsqueeze_dim=2)
        entries = pool.entries(key, past_key_values.layers[indexer.layer_idx], (cos[0, :-count], sin[0, :-count]))
        scores = F.relu(query.float() @ entries.values.float().transpose(-1, -2)[:, None]).sum(dim=2)
        keys = selected_keys(scores * indexer.index_head_dim**-0.5, entries, pool.rate, indexer.block_topk)
        width = attention_mask.shape[-1]
        marks = torch.zeros(1, count, width + 1, dtype=torch.bool, device=keys.device)
        marks.scatter_(-1, keys.masked_fill(keys < 0, width), True)
        return marks[:, None, :, :width]
