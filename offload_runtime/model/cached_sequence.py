"""One text in a cache: which of its rows are committed, and which belong to the pass or the tree in progress."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from offload_runtime.model.heads.text_features import TextFeatures
from offload_runtime.model.linear_attention.states import SequenceStates

if TYPE_CHECKING:
    from offload_runtime.model.kv_cache import TreeCache


class CachedSequence:
    """Rows ``[0, length)`` of the text are committed; rows ``[length, end)`` belong to the pass or tree in progress.

    They lie in the cache from `first_row` on, which has room for `most_rows` of them. An abandoned pass leaves `length`
    and the committed rows unchanged; `rollback` drops the rest.

    states: of recurrent layers that branch; they go back to snapshots, so a truncated text may be shorter than asked
    for. Other recurrent states cannot go back to an earlier token, and can absorb several tokens at once only from
    their initial value: rolling back or truncating resets them.
    features: hidden states at the committed rows, for a draft head; None without one.
    """

    def __init__(self, cache: "TreeCache", first_row: int, most_rows: int, states: SequenceStates | None = None):
        self._cache, self.first_row, self.most_rows, self.states = cache, first_row, most_rows, states
        self.features: TextFeatures | None = None
        self.length = 0
        self.end = 0

    def advance(self, rows: int) -> None:
        """The model has appended `rows` rows in every layer."""
        if self.features is not None:
            self.features.passed(self.end, rows)
        self.end += rows
        assert self.end <= self.most_rows

    def commit(self, rows: Sequence[int]) -> None:
        """Keep the given uncommitted rows (ascending, relative to `length`) in that order and drop the others."""
        assert all(a < b for a, b in pairwise(rows)) and (not rows or self.length + rows[-1] < self.end)
        assert not self._cache.is_recurrent or len(rows) == self.end - self.length, "the state has absorbed every row"
        if self.states is not None:
            self.states.commit(self.length, rows)
        if self.features is not None:
            self.features.commit(self.length, rows)
        in_place = next((i for i, row in enumerate(rows) if row != i), len(rows))
        if in_place < len(rows):
            first = self.first_row + self.length
            self._cache.move([first + row for row in rows[in_place:]], first + in_place)
        self.length += len(rows)
        self.end = self.length

    def rollback(self) -> None:
        """Drop the uncommitted rows."""
        if self.states is not None:
            self.states.rollback()
        if self._cache.is_recurrent and self.end != self.length:
            self.restart()
        self.end = self.length

    def begin(self, prompt: int, common: int) -> None:
        """Switch to a text with a prompt of `prompt` tokens, which begins with the first `common` committed ones."""
        if self.states is not None:
            common = self.states.begin(prompt, self.length, common)
        self.truncate(common)

    def truncate(self, length: int) -> None:
        """Keep at most the first `length` committed rows; the next pass continues from there."""
        if self._cache.is_recurrent and length != self.length:
            self.restart()
        if self.states is not None:
            length = self.states.truncate(self.length, length)
        self.length = self.end = min(length, self.length)
        if self.features is not None:
            self.features.truncate(self.length)

    def restart(self) -> None:
        """Begin again with an empty text, where states cannot go back."""
        self.length = self.end = 0
        self._cache.restart()

    def extend_to(self, length: int) -> None:
        """Rows up to `length` were written from elsewhere; they are committed."""
        assert self.end == self.length <= length <= self.most_rows and not self._cache.is_recurrent
        self.length = self.end = length

    def take_from(self, other: "CachedSequence", length: int) -> None:
        """Begin like another text of this cache: copy its first `length` committed rows."""
        length = min(length, other.length)
        if self.states is not None and other.states is not None:
            length = self.states.take_from(other.states, length)
        self._cache.copy(other.first_row, self.first_row, length)
        self.length = self.end = length
        if self.features is not None and other.features is not None:
            self.features.take_from(other.features, length)
