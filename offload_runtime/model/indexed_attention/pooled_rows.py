"""Entries that stand for blocks of tokens, along each node's own path.

What is projected of every `rate` tokens is pooled to one entry, for some together with the block before. All rows keep
what is pooled, and the row that ends a block keeps its entry. So entries are committed, dropped and copied with their
rows, and a node that ends a block has the entry of its own path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.attention import current_rows
from offload_runtime.model.rows import PassRows, SharedRows

_GATHERED_BYTES = 32 << 20  # of what is pooled for nodes at once

TextSlices = tuple[slice, slice]
"""Of a text: its rows in the pass, and its keys among those that attention is given."""


@dataclass(frozen=True)
class Entries:
    """Entries that the rows of a pass may see. values: [1, e, width]. visible: bool [n, e].

    begins: int64 [e], the first position of each block.
    """

    values: Tensor
    visible: Tensor
    begins: Tensor

    @property
    def bias(self) -> Tensor:
        """[1, 1, n, e], to add to scores: 0 or -inf."""
        open_to_all = torch.zeros_like(self.visible, dtype=self.values.dtype)
        return open_to_all.masked_fill_(~self.visible, -torch.inf)[None, None]


class Pool(ABC):
    """What a layer pools: `window` tokens up to the end of every block of `rate`, to entries of `width` values.

    name: of the tables in the cache's layer that hold it.
    """

    def __init__(self, name: str, rate: int, window: int, width: int):
        self._name, self.rate, self._window, self._width = name, rate, window, width

    @abstractmethod
    def weighted(self, pooled: Tensor, windows: Tensor) -> Tensor:
        """[c, width]: means over windows, int64 [c, window], of what is pooled of each token, [keys, any].

        Numbers below 0 stand for what lies before the text; only an overlapping window has any that matter.
        """

    @abstractmethod
    def finished(self, means: Tensor, begins: Tensor, first_keys: Tensor, by_key: Sequence[Tensor]) -> Tensor:
        """[c, width]: entries of blocks that begin at these positions, and at these keys; both int64 [c]."""

    def entries(self, new: Tensor, layer: Any, by_key: Sequence[Tensor] = ()) -> Entries:
        """Keep what is pooled of the rows of the pass, ``[1, n, any]``, and the entries of blocks that end with them.

        by_key: what `finished` needs to know of each key, [keys, any].
        """
        texts = texts_of_pass()
        pooled = layer.append(self._name, new[:, None])[0, 0]
        table = layer.append(f"{self._name}_entries", new.new_zeros(1, 1, new.shape[1], self._width))[0, 0]
        values, seen, begins = zip(
            *(self._of_one(rows, pooled[keys], table[keys], [one[keys] for one in by_key]) for rows, (_, keys) in texts)
        )
        visible = seen[0].new_zeros(new.shape[1], sum(map(len, values)))
        ends = accumulate(map(len, values))
        for (_, (own, _)), some, end in zip(texts, seen, ends):
            visible[own, end - some.shape[1] : end] = some
        return Entries(torch.cat(values)[None], visible, torch.cat(begins))

    def _of_one(
        self, rows: PassRows, pooled: Tensor, table: Tensor, by_key: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The entries ``[e, width]`` of one text, which of them its rows may see, bool ``[n, e]``, where they begin."""
        for ends, windows in (self._of_text(rows), self._of_nodes(rows)):
            if len(ends):
                begins = (rows.column_positions[ends] - (self.rate - 1)).clamp(min=0)
                first_keys = windows[:, -self.rate].clamp(min=0)
                table.index_copy_(0, ends, self.finished(self._means(pooled, windows), begins, first_keys, by_key))
        ends = _arange(self.rate - 1, rows.text_end, self.rate, table)
        columns = torch.cat((ends, _arange(rows.text_end, rows.keys, 1, table)))
        last = rows.column_positions[columns]
        return table[columns], rows.seen[:, columns] & ((last + 1) % self.rate == 0), last - (self.rate - 1)

    def _means(self, pooled: Tensor, windows: Tensor) -> Tensor:
        at_once = max(1, _GATHERED_BYTES // (windows.shape[1] * pooled.shape[1] * pooled.element_size()))
        return torch.cat([self.weighted(pooled, some) for some in windows.split(at_once)])

    def _of_text(self, rows: PassRows) -> tuple[Tensor, Tensor]:
        """The rows of text in this pass that end a block, int64 [c], and the rows that go into each, [c, window]."""
        first = rows.past - rows.past % self.rate + self.rate - 1
        ends = _arange(first, rows.past + rows.chain, self.rate, rows.positions)
        return ends, ends[:, None] + self._back(ends)

    def _of_nodes(self, rows: PassRows) -> tuple[Tensor, Tensor]:
        """The same for all nodes of trees, as if each ended a block."""
        nodes = _arange(rows.keys - rows.count + rows.chain, rows.keys, 1, rows.positions)
        return nodes, rows.columns_at(rows.row_positions[:, None] + self._back(nodes))[rows.chain :]

    def _back(self, like: Tensor) -> Tensor:
        return _arange(1 - self._window, 1, 1, like)


def texts_of_pass() -> Sequence[tuple[PassRows, TextSlices]]:
    """The texts of the pass that runs in this thread."""
    rows = current_rows()
    if isinstance(rows, SharedRows):
        return tuple(zip(rows.texts, rows.spans))
    assert isinstance(rows, PassRows), "the number of entries differs from pass to pass, so none can be replayed"
    return ((rows, (slice(0, rows.count), slice(0, rows.keys))),)


def _arange(begin: int, end: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(begin, max(begin, end), step, device=like.device)
