"""The target's hidden states at the rows of one text, kept until a draft head has read them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from offload_runtime.model.heads.capture import HiddenStates
from scheduler.streaming.device_memory import DeviceMemory
from sequoia_tree.uploads import upload


class TextFeatures:
    """Features ``[rows, width]`` of consecutive committed rows of a text, the latest ones, in memory made beforehand.

    They follow the text: committed rows are added out of the latest pass, and what is truncated is dropped. A text that
    begins with rows of another one takes over what that one keeps. Rows that came otherwise, as from a prompt cache,
    have no features; a head reads zeros there, which makes its guesses worse and nothing else.
    most: rows kept. taken: rows that the head has read; all before its last are dropped where room is needed.
    """

    def __init__(self, states: HiddenStates, most: int, memory: DeviceMemory):
        like = states.rows
        self._states, self._most = states, most
        self._kept = memory.empty(most * states.width * like.itemsize).view(like.dtype).view(most, states.width)
        self._begin = self._count = 0
        self._pass: tuple[int, int | None] = (0, None)  # the text's row that was its first in the pass; its place there
        self.taken = 0

    @property
    def waiting(self) -> int:
        """Rows that the head has not read."""
        return max(0, self._begin + self._count - max(self.taken, self._begin))

    def has_room(self, rows: int) -> bool:
        """Whether so many rows can be added without dropping any that the head has not read."""
        return self.waiting + 1 + rows <= self._most

    def passed(self, row: int, count: int) -> None:
        """A pass has appended `count` rows to the text, from `row` on; called for its texts in their order."""
        self._pass = row, self._states.take(count)

    @torch.inference_mode()
    def commit(self, length: int, rows: Sequence[int]) -> None:
        """Keep uncommitted rows, relative to `length`, as the next rows of the text."""
        first, place = self._pass
        self._pass = length, None
        if not rows:
            return
        if place is None or length != first or self._begin + self._count != length:
            self._begin, self._count = length, 0
            if place is None or length != first:
                self._begin += len(rows)
                return
        assert len(rows) < self._most
        self._make_room(len(rows), length)
        end = self._count + len(rows)
        source = self._states.rows
        if rows[-1] - rows[0] == len(rows) - 1:
            self._kept[self._count : end] = source[place + rows[0] : place + rows[-1] + 1]
        else:
            chosen = upload([place + row for row in rows], source.device)
            torch.index_select(source, 0, chosen, out=self._kept[self._count : end])
        self._count = end

    def truncate(self, length: int) -> None:
        """The text has only its first `length` rows from now on."""
        self._pass = length, None
        self._begin = min(self._begin, length)
        self._count = min(self._count, length - self._begin)
        self.taken = min(self.taken, length)

    def take_from(self, other: "TextFeatures", length: int) -> None:
        """Begin with the first `length` rows of another text."""
        self._begin, self._count = min(other._begin, length), max(0, min(other._count, length - other._begin))
        self._kept[: self._count] = other._kept[: self._count]
        self.taken = min(other.taken, length)
        self._pass = length, None

    def of(self, begin: int, count: int) -> Tensor:
        """``[count, width]`` of the rows from `begin` on; zeros where they are not known. May be a view."""
        first = begin - self._begin
        if first >= 0 and first + count <= self._count:
            return self._kept[first : first + count]
        known = self._kept.new_zeros(count, self._kept.shape[1])
        begins, ends = max(first, 0), min(first + count, self._count)
        if begins < ends:
            known[begins - first : ends - first] = self._kept[begins:ends]
        return known

    def _make_room(self, rows: int, length: int) -> None:
        """For so many rows after `length`: drop what the head has read but its last row, then what is oldest."""
        if self._count + rows <= self._most:
            return
        keep = min(length - max(self.taken - 1, self._begin), self._most - rows)
        if keep:
            self._kept[:keep] = self._kept[self._count - keep : self._count].clone()
        self._begin, self._count = length - keep, keep
