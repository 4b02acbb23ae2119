"""Key/value cache that holds one text, followed by the rows of a tree that is not verified yet.

transformers' own caches drop rows in sliding-window layers and cannot be compacted to an accepted path. So every layer
here is preallocated at full length, and the attention mask alone implements the window.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from loaders.checkpoint.refused import WHAT_RUNS
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.model.attention import rows_before
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class Places:
    """The cache rows that a pass of fixed shape writes, int64 [w], and how many leading rows it attends to."""

    rows: Tensor
    keys: int


# Stands for layers that cache nothing: without attention, or sharing another layer's keys. Not in transformers 5.17.
_NO_CACHE: tuple[type, ...] = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, each ``[1, heads, capacity, head_dim]``, filled up to row `cache.end`.

    Initially zero: a pass of fixed shape reads rows that were never written, and 0 × NaN would be NaN.
    """

    def __init__(self, cache: "TreeCache"):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.device = key_states.device
        self.is_initialized = True

    def _allocate(self, like: Tensor) -> Tensor:
        _, heads, _, head_dim = like.shape
        rows = torch.zeros(1, heads, self._cache.capacity, head_dim, dtype=like.dtype, device=like.device)
        self._cache.on_allocate(rows.nbytes)
        return rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``[1, heads, n, head_dim]`` to the filled rows; return views of all rows up to the new end.

        In a pass of fixed shape: write to the rows in `places`, return views of the rows that it attends to.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        places = self._cache.places
        if places is not None:
            self.keys.index_copy_(2, places.rows, key_states)
            self.values.index_copy_(2, places.rows, value_states)
            return self.keys[:, :, : places.keys], self.values[:, :, : places.keys]
        begin, end = self._cache.end, self._cache.end + key_states.shape[2]
        assert end <= self._cache.scratch
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self._cache.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        places = self._cache.places
        return (self._cache.end + query_length if places is None else places.keys), 0

    def get_max_length(self) -> int:
        return self._cache.scratch

    def move(self, source: Tensor, begin: int) -> None:
        """Copy the rows `source` (int64, on the cache's device) to the rows that start at `begin`."""
        assert self.keys is not None and self.values is not None
        for rows in (self.keys, self.values):
            rows[:, :, begin : begin + len(source)] = rows.index_select(2, source)


class TreeCache(Cache):
    """Rows ``[0, length)`` are committed; rows ``[length, end)`` belong to the pass or the tree in progress.

    An abandoned pass leaves `length` and the committed rows unchanged; `rollback` drops the rest.

    The last of the `capacity` rows is scratch, for padding only.

    Recurrent layers (state space, linear attention) keep transformers' own cache layer. Their state cannot be rolled
    back to an earlier token, and it can absorb several tokens at once only from its initial value. So rolling back or
    truncating a recurrent cache resets it.
    """

    def __init__(
        self, config: PretrainedConfig, capacity: int, on_allocate: Callable[[int], None] = lambda nbytes: None
    ):
        self.capacity = capacity
        self.scratch = capacity - 1
        self.places: Places | None = None
        self.on_allocate = on_allocate
        self.length = 0
        self.end = 0
        self._model_type = config.model_type
        layers = [self._layer(layer) for layer in DynamicCache(config=config).layers]
        self._states = [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
        super().__init__(layers=layers)

    def _layer(self, layer: Any) -> Any:
        """The layer to use instead of transformers' `layer`."""
        if isinstance(layer, (LinearAttentionCacheLayerMixin, _NO_CACHE)):
            return layer
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            return TreeCacheLayer(self)
        raise UnsupportedModelError(
            f"{self._model_type}: its attention keeps a {type(layer).__name__}, which cannot hold a tree. {WHAT_RUNS}."
        )

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer is recurrent; such a cache cannot hold a tree."""
        return bool(self._states)

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Cached rows before those of the pass: an int, or int64 [n] if asked for one layer during a pass.

        Llama 4's attention adds the row index to it to get positions; in a tree these do not follow the rows' order.
        """
        counted = None if layer_idx is None else rows_before()
        return super().get_seq_length(layer_idx or 0) if counted is None else counted

    def advance(self, rows: int) -> None:
        """The model has appended `rows` rows in every layer."""
        self.end += rows
        assert self.end <= self.scratch

    @contextmanager
    def writing_at(self, places: Places) -> Iterator[None]:
        """Within the block, passes write and read the rows given by `places`, not those at the end."""
        self.places = places
        try:
            yield
        finally:
            self.places = None

    @torch.inference_mode()
    def commit(self, rows: Sequence[int]) -> None:
        """Keep the given uncommitted rows (ascending, relative to `length`) in that order and drop the others."""
        assert all(a < b for a, b in pairwise(rows)) and (not rows or self.length + rows[-1] < self.end)
        assert not self._states or len(rows) == self.end - self.length, "a recurrent state has absorbed every row"
        in_place = next((i for i, row in enumerate(rows) if row != i), len(rows))
        if in_place < len(rows):
            self._move([self.length + row for row in rows[in_place:]], self.length + in_place)
        self.length += len(rows)
        self.end = self.length

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Surrounds a pass. If it fails, recurrent states may have absorbed part of it, so the cache is reset."""
        try:
            yield
        except BaseException:
            if self._states:
                self._restart()
            raise

    def rollback(self) -> None:
        """Drop the uncommitted rows."""
        if self._states and self.end != self.length:
            self._restart()
        self.end = self.length

    def truncate(self, length: int) -> None:
        """Keep at most the first `length` committed rows; the next pass continues from there."""
        if self._states and length != self.length:
            self._restart()
        self.length = self.end = min(length, self.length)

    def free(self) -> None:
        """Free all rows; the cache cannot be used afterwards."""
        self.layers.clear()
        self._states.clear()

    @torch.inference_mode()
    def _restart(self) -> None:
        self.length = self.end = 0
        for layer in self._states:
            layer.reset()

    def _move(self, source: list[int], begin: int) -> None:
        """Copy the rows `source` to the rows that start at `begin`, in every layer."""
        layers = [layer for layer in self.layers if isinstance(layer, TreeCacheLayer) and layer.is_initialized]
        index = upload(source, layers[0].device)
        for layer in layers:
            layer.move(index, begin)
