"""The rows of one layer in a `TreeCache`: on the device, or in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from offload_runtime.model.attention import current_rows
from offload_runtime.model.cached_rows.travelling_rows import Tables, TravellingRows

if TYPE_CHECKING:
    from offload_runtime.model.kv_cache import TreeCache


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, with the texts one after the other.

    tables: what the cache's form stores, each ``[1, heads, rows, any]``. beside: what else rows consist of, always on
    the device and as it is computed: the keys that an indexer selects rows by, what is pooled to entries for blocks.
    Initially zero: a pass of fixed shape reads rows that were never written, and 0 × NaN would be NaN.
    """

    def __init__(self, cache: TreeCache):
        super().__init__()
        self._cache = cache
        self.tables: Tables = {}
        self.beside: dict[str, Tensor] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows = self._cache.form.stored(key_states, value_states)
        self.tables = {name: self._allocate(table) for name, table in rows.items()}
        self._initialized(key_states)

    def _initialized(self, like: Tensor) -> None:
        self.keys = self.values = like.new_empty(0)  # Llama 3.2 asks each layer for their size; rows lie in tables
        self.is_initialized = True

    def _allocate(self, like: Tensor) -> Tensor:
        _, heads, _, width = like.shape
        rows = torch.zeros(1, heads, self._cache.rows, width, dtype=like.dtype, device=like.device)
        self._cache.on_allocate(rows.nbytes)
        return rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``[1, heads, n, head_dim]`` to the text of the pass; return views of its rows up to the new end.

        Where texts share the pass: append to each, return the whole cache. In a pass of fixed shape: write to the rows
        in `places`, return those that it attends to, as views or gathered.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._write(self._cache.form.stored(key_states, value_states))
        rows, needed = self._cache.read_rows(key_states.shape[2])
        if isinstance(rows, Tensor):
            gathered = {name: table.index_select(2, rows) for name, table in self.tables.items()}
            return self._cache.form.read(gathered, needed)
        keys, values = self._cache.form.read(self.tables, needed)
        return keys[:, :, rows], values[:, :, rows]

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Append ``[1, n, index_head_dim]``; return a view ``[1, keys, index_head_dim]``, of the rows as `update`."""
        return self.update_index(indexer_key_states[:, None])[:, 0]

    def update_index(self, idx_k: Tensor) -> Tensor:
        """`update_indexer`, as MiniMax M3 calls it: ``[1, 1, n, index_head_dim]`` and ``[1, 1, keys, ...]``."""
        return self.append("index", idx_k)

    def append(self, name: str, new: Tensor) -> Tensor:
        """Append ``[1, heads, n, any]`` to a table beside keys and values; return a view, of the rows as `update`."""
        if name not in self.beside:
            self.beside[name] = self._allocate(new)
        self._put(self.beside[name], new)
        rows, _ = self._cache.read_rows(new.shape[2])
        return self.beside[name].index_select(2, rows) if isinstance(rows, Tensor) else self.beside[name][:, :, rows]

    def _write(self, rows: Tables) -> None:
        """Put the rows of the pass to their places."""
        for name, new in rows.items():
            self._put(self.tables[name], new)

    def _put(self, table: Tensor, new: Tensor) -> None:
        places = self._cache.written_rows(new.shape[2])
        if isinstance(places, slice):
            table[:, :, places] = new
        else:
            table.index_copy_(2, places, new)

    def at_rest(self) -> Tables:
        """All that rows consist of, where it lies between two passes; nothing before the first pass."""
        return {**self._tables_at_rest(), **self.beside}

    def _tables_at_rest(self) -> Tables:
        return self.tables

    @property
    def indexer_position_ids(self) -> Tensor:
        """int64 ``[3, 1, keys]``: the positions of all keys of the pass, as Qwen4-exp asks its first indexed layer."""
        return current_rows().column_positions.expand(3, 1, -1)

    @indexer_position_ids.setter
    def indexer_position_ids(self, positions: Tensor) -> None:
        """It also hands over those of the keys and of the rows of the pass, which are known."""

    def get_seq_length(self) -> int:
        return self._cache.current.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.keys(query_length), 0

    def get_max_length(self) -> int:
        return self._cache.scratch

    def move(self, source: Callable[[torch.device], Tensor], begin: int) -> None:
        """Copy the rows `source`, int64 on the device asked for, to the rows that start at `begin`."""
        for table in self.at_rest().values():
            rows = source(table.device)
            table[:, :, begin : begin + len(rows)] = table.index_select(2, rows)

    def copy(self, source: int, begin: int, count: int) -> None:
        """Copy the `count` rows from `source` on to the rows that start at `begin`, which are others."""
        for table in self.at_rest().values():
            table[:, :, begin : begin + count] = table[:, :, source : source + count]


class TravellingLayer(TreeCacheLayer):
    """Keys and values of one layer, whose rows lie in host memory and come to the device for the layer's computation.

    number: of the layers that cache anything.
    """

    def __init__(self, cache: TreeCache, number: int):
        super().__init__(cache)
        self._number = number

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._initialized(key_states)

    def _write(self, rows: Tables) -> None:
        self.tables = self._rows.arrive(self._number, rows)
        super()._write(rows)

    def _tables_at_rest(self) -> Tables:
        return self._rows.on_host(self._number) if self.is_initialized else {}

    @property
    def _rows(self) -> TravellingRows:
        assert self._cache.travelling is not None
        return self._cache.travelling
