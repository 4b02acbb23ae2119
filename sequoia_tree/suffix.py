"""Continuing a text by its own repetition: what followed the last time the text ended like this."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST_MATCH = 32  # longer matches count as equal: they predict hardly better


class SuffixMatcher:
    """A growing list of token ids that finds its own end elsewhere in itself.

    No index: 8 to 16 bytes and constant time per token appended. A match compares every token with the last one and
    goes on with those that agree: about 0.02 ms in 4,000 tokens and 0.1 ms in 100,000. That is less than the draft
    spends on one row, and the text can be cut back for nothing.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._buffer = np.empty(1024, dtype=np.int64)
        self._length = 0
        self.extend(tokens)

    def __len__(self) -> int:
        return self._length

    def extend(self, tokens: Sequence[int]) -> None:
        """Append `tokens`."""
        length = self._length + len(tokens)
        if length > len(self._buffer):
            grown = np.empty(max(length, 2 * len(self._buffer)), dtype=np.int64)
            grown[: self._length] = self._text
            self._buffer = grown
        self._buffer[self._length : length] = tokens
        self._length = length

    def truncate(self, length: int) -> None:
        """Cut back to the first `length` tokens. ValueError where there are fewer."""
        if not 0 <= length <= self._length:
            raise ValueError(f"a text of {self._length} tokens can be cut to 0 to {self._length}, not to {length}")
        self._length = length

    def restart(self, tokens: Sequence[int]) -> None:
        """Turn to another text."""
        self.truncate(0)
        self.extend(tokens)

    def match(self, tail: Sequence[int] = ()) -> tuple[int, int]:
        """(length, start): the longest end of text + tail that occurs earlier in text + tail, and what follows it.

        `start` is the place after that earlier occurrence, the latest one if several are as long. Lengths end at
        `LONGEST_MATCH`. Without a match: (0, length of text + tail).
        """
        kept = self._length
        self.extend(tail)
        found = self._longest()
        self.truncate(kept)
        return found

    def continuation(self, max_tokens: int, min_match: int = 1, tail: Sequence[int] = ()) -> list[int]:
        """`max_tokens` tokens: those that followed the match of text + tail; none if it is shorter than `min_match`.

        Where they reach the end of text + tail they begin again, so a text that repeats itself goes on doing so.
        ValueError for a number below 1.
        """
        if max_tokens < 1 or min_match < 1:
            raise ValueError(f"max_tokens and min_match must be at least 1, got {max_tokens} and {min_match}")
        kept = self._length
        self.extend(tail)
        length, start = self._longest()
        followed = self._text[start : start + max_tokens].tolist()
        self.truncate(kept)
        return (followed * -(-max_tokens // len(followed)))[:max_tokens] if length >= min_match else []

    @property
    def _text(self) -> NDArray[np.int64]:
        return self._buffer[: self._length]

    def _longest(self) -> tuple[int, int]:
        text, length = self._text, 0
        last = len(text) - 1
        places = np.empty(0, dtype=np.int64)
        longer = np.flatnonzero(text[:-1] == text[-1]) if len(text) else places
        while len(longer):
            places, length = longer, length + 1
            if length == min(LONGEST_MATCH, last):
                break
            # a place below `length` has too little before it; its negative index only keeps the gather in range
            longer = places[(places >= length) & (text[places - length] == text[last - length])]
        return length, int(places[-1]) + 1 if length else len(text)
