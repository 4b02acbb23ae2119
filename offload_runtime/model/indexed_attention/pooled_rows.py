"""Entries that stand for blocks of tokens, along each node's own path: the compressors of DeepSeek-V4.

A compressor pools what it projects of every `rate` tokens to one entry of keys and values, some together with the block
before. All rows keep what is pooled, and the row that ends a block keeps its entry. So entries are committed, dropped
and copied with their rows, and a node that ends a block has the entry of its own path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.attention import current_rows
from offload_runtime.model.rows import PassRows, SharedRows

_GATHERED_BYTES = 32 << 20  # of what is pooled for nodes at once


@dataclass(frozen=True)
class Entries:
    """Entries that the rows of a pass may see. values: [1, e, width]. visible: bool [n, e]."""

    values: Tensor
    visible: Tensor

    @property
    def bias(self) -> Tensor:
        """[1, 1, n, e], to add to scores: 0 or -inf."""
        return torch.zeros_like(self.visible, dtype=self.values.dtype).masked_fill_(~self.visible, -torch.inf)[
            None, None
        ]


class Pool:
    """One compressor: its projections, and the rows of a cache layer that it keeps under `name`."""

    def __init__(self, compressor: Any, name: str):
        self._compressor = compressor
        self._name = name
        self._rotate = sys.modules[type(compressor).__module__].apply_rotary_pos_emb
        self._rate: int = compressor.compress_rate
        self._width: int = compressor.head_dim
        self._overlaps: bool = compressor.kv_proj.out_features > self._width

    def entries(self, hidden_states: Tensor, layer: Any) -> Entries:
        """Keep what is pooled of the rows of the pass, and the entries of blocks that end with them."""
        compressor, texts = self._compressor, _texts()
        new = torch.cat((compressor.kv_proj(hidden_states), compressor.gate_proj(hidden_states)), dim=-1)[:, None]
        pooled = layer.append(self._name, new)[0, 0]
        table = layer.append(f"{self._name}_entries", new.new_zeros(*new.shape[:-1], self._width))[0, 0]
        values, seen = zip(*(self._of_one(rows, pooled[keys], table[keys]) for rows, (_, keys) in texts))
        visible = seen[0].new_zeros(new.shape[2], sum(map(len, values)))
        ends = accumulate(map(len, values))
        for (_, (own, _)), some, end in zip(texts, seen, ends):
            visible[own, end - some.shape[1] : end] = some
        return Entries(torch.cat(values)[None], visible)

    def _of_one(self, rows: PassRows, pooled: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """The entries ``[e, width]`` of one text, and which of them its rows may see, bool ``[n, e]``."""
        for ends, windows in (self._of_text(rows), self._of_nodes(rows)):
            if len(ends):
                table.index_copy_(0, ends, self._pooled(pooled, windows, rows.column_positions[ends]))
        ends = _arange(self._rate - 1, rows.text_end, self._rate, table)
        columns = torch.cat((ends, _arange(rows.text_end, rows.keys, 1, table)))
        ended = (rows.column_positions[columns] + 1) % self._rate == 0
        return table[columns], rows.seen[:, columns] & ended

    def _of_text(self, rows: PassRows) -> tuple[Tensor, Tensor]:
        """The rows of text in this pass that end a block, int64 [c], and the rows that go into each, [c, window]."""
        first = rows.past - rows.past % self._rate + self._rate - 1
        ends = _arange(first, rows.past + rows.chain, self._rate, rows.positions)
        return ends, ends[:, None] + self._back(ends)

    def _of_nodes(self, rows: PassRows) -> tuple[Tensor, Tensor]:
        """The same for all nodes of trees, as if each ended a block."""
        nodes = _arange(rows.keys - rows.count + rows.chain, rows.keys, 1, rows.positions)
        positions = rows.column_positions[nodes][:, None] + self._back(nodes)
        own = rows.path_columns.gather(1, (positions - rows.past).clamp(min=0))
        return nodes, torch.where(positions < rows.past, positions, own)

    def _back(self, like: Tensor) -> Tensor:
        window = 2 * self._rate if self._overlaps else self._rate
        return _arange(1 - window, 1, 1, like)

    def _pooled(self, pooled: Tensor, windows: Tensor, positions: Tensor) -> Tensor:
        """[c, width]: the entries of windows, int64 [c, window], that end at these positions."""
        compressor = self._compressor
        at_once = max(1, _GATHERED_BYTES // (windows.shape[1] * pooled.shape[1] * pooled.element_size()))
        sums = torch.cat([self._weighted(pooled, some) for some in windows.split(at_once)])
        entries = compressor.kv_norm(sums)[None]
        begins = (positions - (self._rate - 1)).clamp(min=0)[None]
        cos, sin = compressor.rotary_emb(entries, position_ids=begins, layer_type=compressor.rope_layer_type)
        rotated: Tensor = self._rotate(entries[:, None], cos, sin)
        return rotated[0, 0]

    def _weighted(self, pooled: Tensor, windows: Tensor) -> Tensor:
        rate, width, bias = self._rate, self._width, self._compressor.position_bias
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


class PoolsBlocks:
    """Stands for the forward of a compressor, and of its indexer if it has one."""

    def __init__(self, compressor: Any):
        self._pool = Pool(compressor, "pooled")
        self._indexer: Any = getattr(compressor, "indexer", None)
        self._index = Pool(self._indexer, "index") if self._indexer is not None else None
        self._rotate = sys.modules[type(compressor).__module__].apply_rotary_pos_emb

    def __call__(
        self, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Entries ``[1, 1, e, width]``, and what to add to their scores, ``[1, 1, n, e]``."""
        layer = past_key_values.layers[layer_idx]
        entries = self._pool.entries(hidden_states, layer)
        bias = entries.bias
        if self._index is not None:
            bias = self._selected(hidden_states, q_residual, position_ids, self._index.entries(hidden_states, layer))
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


def _texts() -> Sequence[tuple[PassRows, tuple[slice, slice]]]:
    """The texts of the pass, each with its rows in the pass, and its keys among those that attention is given."""
    rows = current_rows()
    if isinstance(rows, SharedRows):
        return tuple(zip(rows.texts, rows.spans))
    assert isinstance(rows, PassRows), "the number of entries differs from pass to pass, so none can be replayed"
    return ((rows, (slice(0, rows.count), slice(0, rows.keys))),)


def _arange(begin: int, end: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(begin, max(begin, end), step, device=like.device)
