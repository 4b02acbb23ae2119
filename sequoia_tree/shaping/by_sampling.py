"""Values kept by sampling: of the samplings used last, without what belongs to one request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from sequoia_tree.shaping.settings import Sampling

Value = TypeVar("Value")


class BySampling(Generic[Value]):
    """At most `most` values; beyond them, the one that was used least recently goes.

    A server sees as many temperatures as its clients think of. numbers: distinguish the values of one sampling, which
    is kept without the rules of its request: these hold a prompt or a grammar.
    """

    def __init__(self, most: int):
        assert most > 0
        self._most = most
        self._values: OrderedDict[tuple[Sampling, tuple[int, ...]], Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, sampling: Sampling, *numbers: int) -> Value | None:
        """The value, which counts as used now; None if there is none."""
        value = self._values.get((sampling, numbers))
        if value is not None:
            self._values.move_to_end((sampling, numbers))
        return value

    def put(self, value: Value, sampling: Sampling, *numbers: int) -> Value:
        """Keep a value, in place of what was there, and return it."""
        if (sampling, numbers) not in self._values:
            sampling = replace(sampling, rules=())
        self._values[sampling, numbers] = value
        self._values.move_to_end((sampling, numbers))
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value

    def obtain(self, make: Callable[[], Value], sampling: Sampling, *numbers: int) -> Value:
        """The value, made if there is none."""
        value = self.get(sampling, *numbers)
        return self.put(make(), sampling, *numbers) if value is None else value

    def items(self) -> list[tuple[Sampling, Value]]:
        """All of them, those used last at the end."""
        return [(sampling, value) for (sampling, _), value in self._values.items()]
