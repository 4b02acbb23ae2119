"""Key/value cache that holds one conversation and, behind it, the rows of a tree that is not yet verified.

transformers' own caches roll or drop rows on sliding layers and cannot be compacted to an accepted path, so every layer
here is preallocated at full length and the attention mask alone carries the window.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, each ``[1, heads, capacity, head_dim]``; `cache.end` says how many rows are filled."""

    def __init__(self, cache: "TreeCache"):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, like: Tensor) -> Tensor:
        _, heads, _, head_dim = like.shape
        rows = torch.empty(1, heads, self._cache.capacity, head_dim, dtype=like.dtype, device=like.device)
        self._cache.on_allocate(rows.nbytes)
        return rows

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Write ``[1, heads, n, head_dim]`` behind the filled rows; return views of all rows up to and including them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self._cache.end, self._cache.end + key_states.shape[2]
        assert self.keys is not None and self.values is not None and end <= self._cache.capacity
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self._cache.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.end + query_length, 0

    def get_max_length(self) -> int:
        return self._cache.capacity

    def move(self, source: Tensor, begin: int) -> None:
        """Copy the rows `source` (int64) to the rows that start at `begin`."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        for rows in (self.keys, self.values):
            rows[:, :, begin : begin + len(source)] = rows.index_select(2, source)


class TreeCache(Cache):
    """Rows ``[0, length)`` are committed; rows ``[length, end)`` belong to the pass or the tree in progress.

    A pass that is abandoned leaves `length` and the committed rows as they were: `rollback` forgets the rest.
    """

    def __init__(self, num_layers: int, capacity: int, on_allocate: Callable[[int], None] = lambda nbytes: None):
        self.capacity = capacity
        self.on_allocate = on_allocate
        self.length = 0
        self.end = 0
        super().__init__(layers=[TreeCacheLayer(self) for _ in range(num_layers)])

    def advance(self, rows: int) -> None:
        """The model has written `rows` further rows in every layer."""
        self.end += rows
        assert self.end <= self.capacity

    @torch.inference_mode()
    def commit(self, rows: Sequence[int]) -> None:
        """Keep the given uncommitted rows (ascending, relative to `length`) in that order and forget the others."""
        assert all(a < b for a, b in zip(rows, rows[1:])) and (not rows or self.length + rows[-1] < self.end)
        in_place = next((i for i, row in enumerate(rows) if row != i), len(rows))
        if in_place < len(rows):
            device = next(layer.keys.device for layer in self.layers if layer.is_initialized)
            source = torch.tensor([self.length + row for row in rows[in_place:]], device=device)
            for layer in self.layers:
                layer.move(source, self.length + in_place)
        self.length += len(rows)
        self.end = self.length

    def rollback(self) -> None:
        """Forget the rows that were not committed."""
        self.end = self.length

    def truncate(self, length: int) -> None:
        """Keep the first `length` committed rows."""
        self.length = self.end = min(length, self.length)
