"""The tokens that a grammar allows after each of many beginnings of a reply, as bit masks, by llguidance."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offload_runtime.errors import UsageError
from offload_runtime.grammar.compiled import fault
from offload_runtime.grammar.thoughts import ANSWER, ReplyPosition, Thoughts

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bits = NDArray[np.uint8]
"""Bit i of byte k stands for token 8 k + i."""

_WORD = 64  # bits that masks are padded to


class Masks:
    """Follows one reply, and looks ahead on the paths of a tree.

    One parser walks over the paths in their order, forth and back: a step back takes microseconds, while a copy of the
    parser grows with the text. thoughts: tell where the answer begins, from the place `begin`; None if all is answer.
    ends: the tokens that end a reply, allowed where the grammar may end and nowhere else. foreign: tokens that the
    parser takes for such. call_end: one of `ends` that may end a reply among its thoughts.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        ends: Iterable[int],
        vocab_size: int,
        foreign: Iterable[int] = (),
        thoughts: Thoughts | None = None,
        begin: ReplyPosition = ANSWER,
        call_end: int | None = None,
    ):
        self._matcher, self._thoughts, self._begin = matcher, thoughts, begin
        self._nbytes = -(-vocab_size // _WORD) * (_WORD // 8)
        self._end_tokens, self._openers = frozenset(ends), thoughts.openers if thoughts else frozenset()
        self._all, self._ends = self._bits(range(vocab_size)), self._bits(self._end_tokens)
        self._opens, self._text = self._bits(self._openers), self._all & ~self._ends
        self._parsed = self._text & ~self._bits(foreign)
        self._thought = self._text if call_end is None else self._text | self._bits([call_end])
        self._reply: list[int] = []
        self._place = begin
        self._path: list[int] = []  # what the parser has read beyond the reply
        self._known: dict[tuple[int, ...], Bits] = {}
        self._distinct: dict[bytes, Bits] = {}

    def after(self, reply: list[int], paths: Sequence[tuple[int, ...]]) -> list[Bits]:
        """The tokens allowed after `reply` and each of the paths; all of them after a path that cannot be taken.

        Equal masks are the same object. Raises UsageError where the reply cannot go on.
        """
        if reply != self._reply:
            self._follow(reply)
        for path in sorted({*paths}.difference(self._known)):  # neighbours have most of their way in common
            mask = self._after_path(path)
            self._known[path] = self._distinct.setdefault(mask.tobytes(), mask)
        return [self._known[path] for path in paths]

    def _follow(self, reply: list[int]) -> None:
        """Bring the parser to the end of `reply`."""
        self._known, self._distinct = {}, {}
        self._back_to(0)
        if reply[: len(self._reply)] != self._reply:
            self._matcher.reset()
            self._reply, self._place = [], self._begin
        self._place, answer = self._way(reply[len(self._reply) :])
        if not self._read(answer):
            raise _stuck()
        self._reply, self._path = [*reply], []

    def _way(self, tokens: Sequence[int]) -> tuple[ReplyPosition, Sequence[int]]:
        """Where `tokens` after the reply lead, and which of them are for the parser."""
        place = self._place
        for index, token in enumerate(tokens):
            if place.answers and not (place.first and token in self._openers):
                return ANSWER, tokens[index:]
            assert self._thoughts is not None
            place = self._thoughts.after(place, token)
        return place, ()

    def _after_path(self, path: tuple[int, ...]) -> Bits:
        if not self._end_tokens.isdisjoint(path):
            return self._all  # what comes after the end is never kept
        place, answer = self._way(path)
        if not place.answers:
            return self._thought
        if not self._read(answer):
            return self._all
        mask = self._parsers() | self._opens if place.first else self._parsers()
        if mask.any():
            return mask
        if not path:
            raise _stuck()
        return self._all

    def _read(self, tokens: Sequence[int]) -> bool:
        """Bring the parser behind `tokens` after the reply; False if it cannot go there."""
        differing = (index for index, pair in enumerate(zip(self._path, tokens)) if pair[0] != pair[1])
        common = next(differing, min(len(self._path), len(tokens)))
        self._back_to(common)
        further = list(tokens[common:])
        if any(token < 0 for token in further):
            return False
        count = self._matcher.try_consume_tokens(further) if further else 0
        self._path += further[:count]
        self._check()
        return count == len(further)

    def _back_to(self, count: int) -> None:
        """Leave the parser `count` tokens after the reply."""
        if len(self._path) > count:
            self._matcher.rollback(len(self._path) - count)
            del self._path[count:]

    def _parsers(self) -> Bits:
        """What the parser allows where it stands."""
        mask = np.zeros(self._nbytes, dtype=np.uint8)
        allowed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)[: self._nbytes]
        self._check()
        mask[: len(allowed)] = allowed
        mask &= self._parsed
        return mask | self._ends if self._matcher.is_accepting() else mask

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = fault(self._matcher)
            if reason == "NoExtensionBias":  # its name for a dead end
                raise _stuck()
            raise UsageError(f"response_format or tool_choice: the reply became too complex for its grammar: {reason}")

    def _bits(self, tokens: Iterable[int]) -> Bits:
        flags = np.zeros(8 * self._nbytes, dtype=bool)
        flags[[token for token in tokens if 0 <= token < len(flags)]] = True
        return np.packbits(flags, bitorder="little")


def _stuck() -> UsageError:
    return UsageError(
        "response_format or tool_choice: none of the model's tokens can continue the reply within its grammar"
    )
