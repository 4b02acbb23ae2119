"""The rows of a pass: plain text, or the end of a text followed by a tree; of one text, or of several side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class PassRows:
    """The n query tokens ("rows") of a pass, which attend to m uncommitted keys ("columns"); the last n are their own.

    past: committed rows of the cache before the columns; every row sees all of them, as far as its window allows.
    positions: int64 [m], the position of each column in its text.
    visible: bool [n, m], whether a column is the row itself or one of its ancestors.
    first_row: the row of the cache at which the text begins.
    chain: how many of the first rows are text that continues the cached one.
    """

    past: int
    positions: Tensor
    visible: Tensor
    first_row: int = 0
    chain: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.visible.shape
        assert self.positions.shape == (columns,) and rows <= columns

    @property
    def count(self) -> int:
        """n."""
        return self.visible.shape[0]

    @property
    def keys(self) -> int:
        """past + m."""
        return self.past + len(self.positions)

    @property
    def row_positions(self) -> Tensor:
        """int64 [n]."""
        return self.positions[-self.count :]

    @cached_property
    def column_positions(self) -> Tensor:
        """int64 [past + m]: the positions of all keys."""
        return torch.cat((torch.arange(self.past, device=self.positions.device), self.positions))

    @cached_property
    def seen(self) -> Tensor:
        """bool [n, past + m]: whether a key belongs to the text up to the row."""
        return torch.cat((self.visible.new_ones(self.count, self.past), self.visible), dim=1)

    @property
    def text_end(self) -> int:
        """The first key that may belong to a branch: those before it are text, at the positions that they lie at."""
        return self.past + self.chain

    @cached_property
    def path_columns(self) -> Tensor:
        """int64 [nodes, m + 1]: for each row of the pass behind its text, the key at each position from `past` on.

        Arbitrary where its path has none.
        """
        visible, count = self.visible[self.chain :], len(self.positions)
        places = torch.where(visible, self.positions - self.past, count)
        keys = torch.arange(self.past, self.keys, device=self.positions.device)
        return torch.full((len(visible), count + 1), self.past, device=keys.device).scatter_(
            1, places, keys.expand(visible.shape)
        )

    def columns_at(self, positions: Tensor) -> Tensor:
        """The keys at positions, int64 [n, any], of each row's own path; arbitrary where it has none."""
        text, nodes = positions[: self.chain], positions[self.chain :]
        own = self.path_columns.gather(1, (nodes - self.past).clamp(0, len(self.positions)))
        return torch.cat((text, torch.where(nodes < self.past, nodes, own)))

    def allowed(self, mask_function: Callable) -> Tensor:
        """bool [n, past + m]: which keys each row may attend to, given transformers' predicate."""
        allowed = _permitted(mask_function, self.row_positions, self.column_positions).clone()
        allowed[:, self.past :] &= self.visible
        return allowed


@dataclass(frozen=True)
class SharedRows:
    """The query tokens of several texts in one pass, text after text; each attends to keys of its own text only."""

    texts: tuple[PassRows, ...]

    @property
    def past(self) -> int:
        """Committed rows of all texts together."""
        return sum(text.past for text in self.texts)

    @property
    def count(self) -> int:
        """Query tokens of all texts together."""
        return sum(text.count for text in self.texts)

    @property
    def keys(self) -> int:
        """Most keys of a text."""
        return max(text.keys for text in self.texts)

    @property
    def width(self) -> int:
        """Rows of the cache up to the last key of all texts."""
        return max(text.first_row + text.keys for text in self.texts)

    @cached_property
    def row_positions(self) -> Tensor:
        """int64 [n]."""
        return torch.cat([text.row_positions for text in self.texts])

    @cached_property
    def spans(self) -> tuple[tuple[slice, slice], ...]:
        """Of each text: its query tokens in the pass, and its keys in the cache."""
        ends = list(accumulate((text.count for text in self.texts), initial=0))
        return tuple(
            (slice(begin, end), slice(text.first_row, text.first_row + text.keys))
            for text, (begin, end) in zip(self.texts, pairwise(ends))
        )

    @cached_property
    def column_positions(self) -> Tensor:
        """int64 [width]: the positions of all keys, each in its own text; 0 where no text has any."""
        positions = torch.zeros(self.width, dtype=torch.int64, device=self.row_positions.device)
        for text, (_, keys) in zip(self.texts, self.spans):
            positions[keys] = text.column_positions
        return positions

    @cached_property
    def seen(self) -> Tensor:
        """bool [n, width]: whether a key belongs to the text up to the row."""
        seen = torch.zeros(self.count, self.width, dtype=torch.bool, device=self.row_positions.device)
        for text, (own, keys) in zip(self.texts, self.spans):
            seen[own, keys] = text.seen
        return seen


@dataclass(frozen=True)
class PaddedRows:
    """The w query tokens of a pass of fixed shape, over the first k rows of the cache, used or not.

    row_positions: int64 [w]. column_positions: int64 [k], arbitrary for keys that no row sees. visible: bool [w, k],
    at least one key per row: a fully masked row gives NaN.
    """

    row_positions: Tensor
    column_positions: Tensor
    visible: Tensor

    @property
    def seen(self) -> Tensor:
        """bool [w, k], as of `PassRows`."""
        return self.visible

    def allowed(self, mask_function: Callable) -> Tensor:
        """bool [w, k], as for `PassRows`."""
        return _permitted(mask_function, self.row_positions, self.column_positions) & self.visible


def _permitted(mask_function: Callable, rows: Tensor, columns: Tensor) -> Tensor:
    """The predicate at every pair of positions, int64 [n] and [k]: bool [n, k]."""
    zero = torch.zeros(1, 1, dtype=torch.int64, device=rows.device)  # a 0-dimensional index makes the host wait
    return mask_function(zero, zero, rows[:, None], columns[None, :]).expand(len(rows), len(columns))


def text_rows(past: int, count: int, device: torch.device, first_row: int = 0) -> PassRows:
    """`count` rows of text after `past` cached rows; each sees itself and all rows before it."""
    positions = torch.arange(past, past + count, device=device)
    visible = torch.ones(count, count, dtype=torch.bool, device=device).tril_()
    return PassRows(past, positions, visible, first_row, chain=count)


def text_and_tree_rows(past: int, count: int, ancestors: Tensor, depths: Tensor, first_row: int = 0) -> PassRows:
    """`count` rows of text, the last being the root of a tree, followed by the tree's other nodes.

    ancestors: bool [n, n], row i marks node i and its ancestors. depths: int64 [n]. Returns count + n - 1 rows.
    """
    before_root, nodes = count - 1, len(depths)
    if not before_root:
        return PassRows(past, past + depths, ancestors, first_row)
    rows = before_root + nodes
    visible = torch.zeros(rows, rows, dtype=torch.bool, device=depths.device)
    visible[:before_root, :before_root] = torch.ones_like(visible[:before_root, :before_root]).tril_()
    visible[before_root:, :before_root] = True
    visible[before_root:, before_root:] = ancestors
    text_positions = torch.arange(past, past + before_root, device=depths.device)
    positions = torch.cat((text_positions, past + before_root + depths))
    return PassRows(past, positions, visible, first_row, chain=before_root)
