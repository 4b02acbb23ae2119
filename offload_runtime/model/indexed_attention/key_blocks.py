"""MiniMax M3's indexer over rows: blocks of keys by their positions in the text, not by their rows in the cache.

The indexer scores every key, takes the best score of each block of so many positions, and selects the best blocks, and
those next to the row. Along a branch of a tree a block holds the keys of the row's own ancestors.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from offload_runtime.model.attention import current_rows


class SelectsKeyBlocks:
    """Stands for the forward of one indexer."""

    def __init__(self, indexer: nn.Module):
        self._indexer: Any = indexer
        self._rotate = sys.modules[type(indexer).__module__].apply_rotary_pos_emb

    def __call__(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], past_key_values: Any, _: Tensor
    ) -> Tensor:
        """bool ``[1, index heads, n, k]``: the keys in selected blocks, as `tree_attention` takes `block_indices`."""
        indexer, rows = self._indexer, current_rows()
        shape = (1, hidden_states.shape[1], -1, indexer.head_dim)
        query = indexer.q_norm(indexer.q_proj(hidden_states).view(shape)).transpose(1, 2)
        key = indexer.k_norm(indexer.k_proj(hidden_states).view(shape)).transpose(1, 2)
        cos, sin = (part[..., : indexer.head_dim] for part in position_embeddings)
        query, key = self._rotate(query, key, cos, sin)
        keys = past_key_values.layers[indexer.layer_idx].update_index(key)
        scores = (query.float() @ keys.float().transpose(-1, -2)).masked_fill(~rows.seen, -torch.inf)
        width = keys.shape[2]
        block_of_key = rows.column_positions.clamp(max=width - 1) // indexer.block_size
        selected = self._selected(scores, block_of_key, rows.row_positions, -(-width // indexer.block_size))
        return selected.index_select(-1, block_of_key)

    def _selected(self, scores: Tensor, block_of_key: Tensor, row_positions: Tensor, count: int) -> Tensor:
        """bool ``[1, heads, n, count]``: the blocks that each row selects."""
        indexer = self._indexer
        best = scores.new_full((*scores.shape[:-1], count), -torch.inf)
        best.scatter_reduce_(-1, block_of_key.expand(scores.shape), scores, "amax")
        if indexer.local_blocks > 0:
            back = torch.arange(indexer.local_blocks, device=scores.device)
            near = (row_positions[:, None] // indexer.block_size - back).clamp(min=0)
            best.scatter_(-1, near.expand(*scores.shape[:-1], -1), torch.inf)
        values, blocks = best.topk(min(indexer.topk_blocks, count), dim=-1)
        return torch.zeros_like(best, dtype=torch.bool).scatter_(-1, blocks, values > -torch.inf)
