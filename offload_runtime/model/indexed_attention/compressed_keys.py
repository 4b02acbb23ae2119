"""DeepSeek-V4's compressors over rows: entries of keys and values, which an indexer with entries of its own selects."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.indexed_attention.pooled_rows import Entries, Pool


class CompressorPool(Pool):
    """One compressor, of a layer or of its indexer."""

    def __init__(self, compressor: Any, name: str):
        self._overlaps: bool = compressor.kv_proj.out_features > compressor.head_dim
        rate: int = compressor.compress_rate
        super().__init__(name, rate, 2 * rate if self._overlaps else rate, compressor.head_dim)
        self._compressor = compressor
        self._rotate = sys.modules[type(compressor).__module__].apply_rotary_pos_emb

    def of(self, hidden_states: Tensor, layer: Any) -> Entries:
        """The entries after the rows of the pass."""
        projected = self._compressor.kv_proj(hidden_states), self._compressor.gate_proj(hidden_states)
        return self.entries(torch.cat(projected, dim=-1), layer)

    def weighted(self, pooled: Tensor, windows: Tensor) -> Tensor:
        rate, width, bias = self.rate, self._width, self._compressor.position_bias
        values, gates = pooled.split(pooled.shape[1] // 2, dim=1)
        own = windows[:, -rate:].clamp(min=0)
        value, gate = values[:, -width:][own], gates[:, -width:][own] + bias[:, -width:]
        if self._overlaps:
            before = windows[:, :rate]
            known = (before >= 0)[..., None]
            before = before.clamp(min=0)
            value = torch.cat((values[:, :width][before], value), dim=1)
            gate = torch.cat(((gates[:, :width][before] + bias[:, :width]).where(known, -torch.inf), gate), dim=1)
        return (value * gate.softmax(dim=1, dtype=torch.float32).to(value.dtype)).sum(dim=1)

    def finished(self, means: Tensor, begins: Tensor, first_keys: Tensor, by_key: Sequence[Tensor]) -> Tensor:
        compressor = self._compressor
        entries = compressor.kv_norm(means)[None]
        cos, sin = compressor.rotary_emb(entries, position_ids=begins[None], layer_type=compressor.rope_layer_type)
        rotated: Tensor = self._rotate(entries[:, None], cos, sin)
        return rotated[0, 0]


class Compresses:
    """Stands for the forward of a compressor, and of its indexer if it has one."""

    def __init__(self, compressor: Any):
        self._pool = CompressorPool(compressor, "pooled")
        self._indexer: Any = getattr(compressor, "indexer", None)
        self._index = CompressorPool(self._indexer, "index") if self._indexer is not None else None
        self._rotate = sys.modules[type(compressor).__module__].apply_rotary_pos_emb

    def __call__(
        self, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Entries ``[1, 1, e, width]``, and what to add to their scores, ``[1, 1, n, e]``."""
        layer = past_key_values.layers[layer_idx]
        entries = self._pool.of(hidden_states, layer)
        bias = entries.bias
        if self._index is not None:
            bias = self._selected(hidden_states, q_residual, position_ids, self._index.of(hidden_states, layer))
        return entries.values[:, None], bias.to(entries.values.dtype)

    def _selected(self, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, entries: Entries) -> Tensor:
        indexer, count = self._indexer, hidden_states.shape[1]
        cos, sin = indexer.rotary_emb(hidden_states, position_ids=position_ids, layer_type=indexer.rope_layer_type)
        query = indexer.q_b_proj(q_residual).view(1, count, -1, indexer.head_dim).transpose(1, 2)
        query = self._rotate(query, cos, sin).transpose(1, 2)
        scores = indexer.scorer(query, entries.values, hidden_states)
        scores = scores.masked_fill(~entries.visible, -torch.inf)
        chosen = scores.topk(min(indexer.index_topk, scores.shape[-1]), dim=-1).indices[:, None]
        bias = entries.bias
        return torch.full_like(bias, -torch.inf).scatter_(-1, chosen, bias.gather(-1, chosen))
