"""Passes of a few fixed shapes over fixed buffers: work that can be captured once and replayed.

A pass over n rows is padded to one of a few widths w, and attends to the first K rows of the cache for one of a few key
lengths K. All that differs from pass to pass, including the number of rows, is data on the device; so the work after
`_write` depends on the shape alone. Padding rows repeat the last real row, write to the cache's scratch row, and give
no logits. The mask hides cache rows that do not belong to the pass.

Where the cache holds several texts, K rows are gathered, those of each text of the pass one after the other, and the
mask hides the texts from each other. So a pass over any of them, or over several, is replayed as one.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from offload_runtime.model.attention import attending
from offload_runtime.model.kv_cache import Places, TreeCache
from offload_runtime.model.rows import PaddedRows, PassRows, SharedRows
from scheduler.plan.padding import Padding

PassSize = tuple[int, int]
"""Rows of a pass, and rows of the cache it attends to."""
Runner = Callable[[PassSize, Callable[[], None]], None]
"""Does work that depends on the shape alone; raises NotReplayable if it turns out to depend on more."""


class NotReplayable(RuntimeError):
    """The model decides on the host what it computes, so its passes cannot be replayed."""


def eagerly(shape: PassSize, work: Callable[[], None]) -> None:
    """The runner that does the work directly."""
    work()


def padded_passes(
    compute: Callable[[Tensor, Tensor], Tensor], cache: TreeCache, device: torch.device, padding: Padding, run: Runner
) -> "PaddedPasses | GatheredPasses":
    """Those for the number of texts that the cache holds."""
    kind = PaddedPasses if len(cache.sequences) == 1 else GatheredPasses
    return kind(compute, cache, device, padding, run)


class PaddedPasses:
    """Runs `compute` over padded rows, of a cache of one text.

    compute: logits ``[w, vocab]`` of tokens and positions, int64 [w]; called inside `attending` and `writing_at`.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        cache: TreeCache,
        device: torch.device,
        padding: Padding,
        run: Runner,
    ):
        assert padding.key_lengths[-1] == cache.capacity and not cache.has_states
        self._compute, self._cache, self._padding, self._run = compute, cache, padding, run
        widest, columns = padding.widths[-1], padding.columns
        self._past, self._count, self._columns = torch.zeros(3, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(widest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(columns, dtype=torch.int64, device=device)
        self._visible = torch.zeros(widest, columns, dtype=torch.bool, device=device)
        self._rows = torch.arange(widest, device=device)
        self._keys = torch.arange(cache.capacity, device=device)
        self._logits: Tensor | None = None

    def takes(self, rows: PassRows | SharedRows) -> bool:
        """Whether the pass fits the widest shape."""
        if isinstance(rows, SharedRows):
            return False
        count, columns = rows.visible.shape
        return count <= self._padding.widths[-1] and columns <= self._padding.columns

    def forward(self, tokens: Tensor, rows: PassRows | SharedRows, logits_to_keep: int | Tensor) -> Tensor:
        """As `Model.forward`."""
        assert isinstance(rows, PassRows)
        shape = self._shape(rows)
        self._write(tokens, rows)
        self._run(shape, partial(self._work, *shape))
        assert self._logits is not None
        return _kept(self._logits[: len(tokens)], logits_to_keep)

    def _shape(self, rows: PassRows) -> PassSize:
        """All passes over one tree have the same key length, so that a level needs no other shape than its parents."""
        padding = self._padding
        width = next(width for width in padding.widths if width >= len(rows.visible))
        end = self._cache.sequences[0].length + padding.columns
        keys = next((keys for keys in padding.key_lengths if keys >= end), padding.key_lengths[-1])
        assert rows.past + len(rows.positions) <= min(keys, self._cache.scratch)
        return width, keys

    def _write(self, tokens: Tensor, rows: PassRows) -> None:
        """Copy a pass into the buffers that `_work` reads, without waiting for the device."""
        count, columns = rows.visible.shape
        self._tokens[:count] = tokens
        self._positions[:columns] = rows.positions
        self._visible[:count, :columns] = rows.visible
        self._past.fill_(rows.past)
        self._count.fill_(count)
        self._columns.fill_(columns)

    def _work(self, width: int, keys: int) -> None:
        """The pass, from buffers to buffers; it depends on the shape alone."""
        source = torch.minimum(self._rows[:width], self._count - 1)
        own_columns = self._columns - self._count + source
        places = (self._past + own_columns).masked_fill(self._rows[:width] >= self._count, self._cache.scratch)
        rows = self._padded_rows(source, own_columns, keys)
        with attending(rows), self._cache.writing_at(Places(places, keys)):
            logits = self._compute(self._tokens[source], rows.row_positions)
        if self._logits is None:  # only the model knows the dtype; the first run is not a replay
            self._logits = logits.new_empty(self._padding.widths[-1], logits.shape[-1])
        self._logits[:width] = logits

    def _padded_rows(self, source: Tensor, own_columns: Tensor, keys: int) -> PaddedRows:
        """Map the pass's columns, which follow `past` rows of text, to key positions in the cache.

        source, own_columns: int64 [w], the row of the pass that each padded row repeats, and that row's column.
        """
        keys_range = self._keys[:keys]
        columns = keys_range - self._past
        places = columns.clamp(0, len(self._positions) - 1)
        column_positions = torch.where(columns < 0, keys_range, self._positions[places])
        inside = (columns >= 0) & (columns < self._columns)
        visible = (columns < 0) | (inside & self._visible[source][:, places])
        return PaddedRows(self._positions[own_columns], column_positions, visible)


class GatheredPasses:
    """Runs `compute` over padded rows, of one or several texts of a cache, and over gathered keys.

    compute: as of `PaddedPasses`. A key length is kept while passes need a quarter of it or more: texts come and go
    from pass to pass, and every length has work of its own to be captured.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        cache: TreeCache,
        device: torch.device,
        padding: Padding,
        run: Runner,
    ):
        assert not cache.has_states
        self._compute, self._cache, self._padding, self._run = compute, cache, padding, run
        widest, most_keys = padding.widths[-1], padding.key_lengths[-1]
        self._tokens, self._row_positions, self._places = torch.zeros(3, widest, dtype=torch.int64, device=device)
        self._key_rows, self._column_positions = torch.zeros(2, most_keys, dtype=torch.int64, device=device)
        self._visible = torch.zeros(widest * most_keys, dtype=torch.bool, device=device)
        self._rows = torch.arange(cache.rows, device=device)
        self._keys = 0  # of the last pass
        self._logits: Tensor | None = None

    def takes(self, rows: PassRows | SharedRows) -> bool:
        """Whether the pass fits the widest shape, and the keys of all its texts the largest."""
        keys = sum(text.keys for text in _texts(rows))
        return rows.count <= self._padding.widths[-1] and keys <= self._padding.key_lengths[-1]

    def forward(self, tokens: Tensor, rows: PassRows | SharedRows, logits_to_keep: int | Tensor) -> Tensor:
        """As `Model.forward`."""
        width = next(width for width in self._padding.widths if width >= rows.count)
        keys = self._key_length(sum(text.keys for text in _texts(rows)))
        self._write(tokens, _texts(rows), width, keys)
        self._run((width, keys), partial(self._work, width, keys))
        assert self._logits is not None
        return _kept(self._logits[: len(tokens)], logits_to_keep)

    def _key_length(self, needed: int) -> int:
        least = next(keys for keys in self._padding.key_lengths if keys >= needed)
        if not least <= self._keys <= 4 * least:
            self._keys = least
        return self._keys

    def _write(self, tokens: Tensor, texts: Sequence[PassRows], width: int, keys: int) -> None:
        """Copy a pass into the buffers that `_work` reads, without waiting for the device."""
        visible = self._seen(width, keys).fill_(False)
        self._key_rows[:keys].fill_(self._cache.scratch)
        row = key = 0
        for text in texts:
            rows, columns, end = slice(row, row + text.count), slice(key, key + text.keys), text.first_row + text.keys
            self._key_rows[columns] = self._rows[text.first_row : end]
            self._places[rows] = self._rows[end - text.count : end]
            self._row_positions[rows] = text.row_positions
            self._column_positions[columns] = text.column_positions
            visible[rows, columns] = text.seen
            row, key = rows.stop, columns.stop
        self._tokens[:row] = tokens
        self._places[row:width].fill_(self._cache.scratch)
        for padded in (self._tokens, self._row_positions, visible):
            padded[row:width] = padded[row - 1 : row]

    def _seen(self, width: int, keys: int) -> Tensor:
        """bool [width, keys], at the same address for the same shape."""
        return self._visible[: width * keys].view(width, keys)

    def _work(self, width: int, keys: int) -> None:
        """The pass, from buffers to buffers; it depends on the shape alone."""
        rows = PaddedRows(self._row_positions[:width], self._column_positions[:keys], self._seen(width, keys))
        places = Places(self._places[:width], keys, self._key_rows[:keys])
        with attending(rows), self._cache.writing_at(places):
            logits = self._compute(self._tokens[:width], rows.row_positions)
        if self._logits is None:
            self._logits = logits.new_empty(self._padding.widths[-1], logits.shape[-1])
        self._logits[:width] = logits


def _texts(rows: PassRows | SharedRows) -> Sequence[PassRows]:
    return rows.texts if isinstance(rows, SharedRows) else (rows,)


def _kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """A copy of the last rows, or of those with these numbers: the next pass overwrites them."""
    if isinstance(logits_to_keep, Tensor):
        return logits.index_select(0, logits_to_keep)
    return logits[len(logits) - logits_to_keep :].clone()
