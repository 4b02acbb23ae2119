"""Passes of a few fixed shapes, over memory that stays where it is: work that can be captured once and replayed.

A pass over n rows becomes one over w of the few widths; it attends to the first K rows of the cache, of the few key
lengths. What differs from pass to pass is data on the device, numbers of rows included, so everything behind `_write`
is the same work for one shape. Rows of padding repeat the last real row, write to the cache's scratch row and are cut
off the logits; rows of the cache that are no part of the pass are hidden by the mask.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from offload_runtime.model.attention import PaddedRows, PassRows, attending
from offload_runtime.model.kv_cache import Places, TreeCache
from scheduler.plan.padding import Padding

Shape = tuple[int, int]
"""Rows of a pass, and rows of the cache it attends to."""
Runner = Callable[[Shape, Callable[[], None]], None]
"""Does work that is always the same for one shape; raises NotReplayable where it turns out not to be."""


class NotReplayable(RuntimeError):
    """A model decides on the host what it computes, so its passes must run as they are."""


def eagerly(shape: Shape, work: Callable[[], None]) -> None:
    """The runner that simply does it."""
    work()


class PaddedPasses:
    """Runs `compute` over padded rows.

    compute: logits ``[w, vocab]`` of tokens and positions, int64 [w], under `attending` and the cache's places.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        cache: TreeCache,
        device: torch.device,
        padding: Padding,
        run: Runner,
    ):
        assert padding.key_lengths[-1] == cache.capacity and not cache.is_recurrent
        self._compute, self._cache, self._padding, self._run = compute, cache, padding, run
        widest, columns = padding.widths[-1], padding.columns
        self._past, self._count, self._columns = torch.zeros(3, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(widest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(columns, dtype=torch.int64, device=device)
        self._visible = torch.zeros(widest, columns, dtype=torch.bool, device=device)
        self._rows = torch.arange(widest, device=device)
        self._keys = torch.arange(cache.capacity, device=device)
        self._logits: Tensor | None = None

    def takes(self, rows: PassRows) -> bool:
        """Whether the pass fits the widest shape."""
        count, columns = rows.visible.shape
        return count <= self._padding.widths[-1] and columns <= self._padding.columns

    def forward(self, tokens: Tensor, rows: PassRows, logits_to_keep: int) -> Tensor:
        """Run ``tokens [n]`` behind what the cache holds; logits ``[logits_to_keep, vocab]`` of the last rows."""
        shape = self._shape(rows)
        self._write(tokens, rows)
        self._run(shape, partial(self._work, *shape))
        assert self._logits is not None
        return self._logits[len(tokens) - logits_to_keep : len(tokens)].clone()  # the next pass writes over them

    def _shape(self, rows: PassRows) -> Shape:
        """The same key length for all passes over one tree, so that a level never needs a shape its parents do not."""
        padding = self._padding
        width = next(width for width in padding.widths if width >= len(rows.visible))
        end = self._cache.length + padding.columns
        keys = next((keys for keys in padding.key_lengths if keys >= end), padding.key_lengths[-1])
        assert rows.past + len(rows.positions) <= min(keys, self._cache.scratch)
        return width, keys

    def _write(self, tokens: Tensor, rows: PassRows) -> None:
        """Copy a pass into the memory that `_work` reads; the device is not waited for."""
        count, columns = rows.visible.shape
        self._tokens[:count] = tokens
        self._positions[:columns] = rows.positions
        self._visible[:count, :columns] = rows.visible
        self._past.fill_(rows.past)
        self._count.fill_(count)
        self._columns.fill_(columns)

    def _work(self, width: int, keys: int) -> None:
        """The pass, from memory to memory; no number of its own but the shape."""
        source = torch.minimum(self._rows[:width], self._count - 1)
        own_columns = self._columns - self._count + source
        places = (self._past + own_columns).masked_fill(self._rows[:width] >= self._count, self._cache.scratch)
        rows = self._padded_rows(source, own_columns, keys)
        with attending(rows), self._cache.writing_at(Places(places, keys)):
            logits = self._compute(self._tokens[source], rows.row_positions)
        if self._logits is None:  # only the model knows the dtype; the first time is no replay
            self._logits = logits.new_empty(self._padding.widths[-1], logits.shape[-1])
        self._logits[:width] = logits

    def _padded_rows(self, source: Tensor, own_columns: Tensor, keys: int) -> PaddedRows:
        """Spread the pass's columns, which lie behind `past` rows of text, over all rows of the cache.

        source, own_columns: int64 [w], the pass's row that each row repeats, and its place among the columns.
        """
        keys_range = self._keys[:keys]
        columns = keys_range - self._past
        places = columns.clamp(0, len(self._positions) - 1)
        column_positions = torch.where(columns < 0, keys_range, self._positions[places])
        inside = (columns >= 0) & (columns < self._columns)
        visible = (columns < 0) | (inside & self._visible[source][:, places])
        return PaddedRows(self._positions[own_columns], column_positions, visible)
