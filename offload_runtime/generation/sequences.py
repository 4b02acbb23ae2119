"""Which texts the caches hold: each that is written has a sequence of them, and finished ones stay until needed."""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import count

from offload_runtime.generation.writer import Writer
from offload_runtime.model.model import Model
from offload_runtime.prompt_cache.prompt_cache import PromptCache

LEAST_COPIED = 16  # tokens; fewer are read again as quickly as they are copied


class Sequences:
    """Assigns the sequences of the models' caches to texts. models: the target first. stored: rows of earlier runs.

    A new text takes the rows of the text that begins most like it: in place if that one is not being written and has
    little else, or as a copy. It displaces the text that was used least recently.
    """

    def __init__(self, models: Sequence[Model], stored: PromptCache | None = None):
        self._models, self._stored = list(models), stored
        self._texts: list[list[int]] = [[] for _ in range(min(len(model.cache.sequences) for model in models))]
        self._owners: list[Writer | None] = [None] * len(self._texts)
        self._used = [0] * len(self._texts)
        self._clock = count(1)
        self._loading: dict[int, Iterator[None]] = {}  # of sequences whose rows from earlier runs are not all there

    def __len__(self) -> int:
        return len(self._texts)

    def take_up(self, writers: Collection[Writer], patience: float) -> list[Writer]:
        """Give every writer a sequence for the next pass; at most as many as there are.

        Returns those that can take part in it. Rows from earlier runs are brought in piece by piece: those that wait
        for none are kept waiting for `patience` seconds, and the rest comes before the passes after the next one.
        """
        for writer in writers:
            if writer.sequence is None or self._owners[writer.sequence] is not writer:
                self._assign(writer, writers)
            self._used[writer.place] = next(self._clock)
        others_wait = any(writer.place not in self._loading for writer in writers)
        until = time.perf_counter() + patience if others_wait else math.inf
        ready = [writer for writer in writers if self._load(writer.place, until)]
        for writer in writers:
            for model in self._models:
                model.reaches(len(writer.text), writer.place)
        return ready

    def _load(self, number: int, until: float) -> bool:
        """Whether all rows of earlier runs are there; at least one piece of them comes, and more before `until`."""
        for _ in self._loading.get(number, ()):
            if time.perf_counter() >= until:
                return False
        self._loading.pop(number, None)
        return True

    def cached(self, writer: Writer) -> int:
        """Tokens of a text that the target need not read; at most all but the last."""
        if writer.sequence is None or self._owners[writer.sequence] is not writer:
            return max((self._usable(number, writer) for number in range(len(self))), default=0)
        return min(self._length(writer.sequence), len(writer.text) - 1)

    def let_go(self, writer: Writer) -> None:
        """A text is not written any more; its committed rows stay for texts that begin like it."""
        if writer.sequence is not None and self._owners[writer.sequence] is writer:
            self.rollback(writer)
            self._loading.pop(writer.sequence, None)
            self._owners[writer.sequence] = None
            if self._stored:
                self._stored.keep(writer.text, writer.sequence)
        writer.sequence = None

    def rollback(self, writer: Writer) -> None:
        """Drop the uncommitted rows of a text."""
        for model in self._models:
            model.cache.sequences[writer.place].rollback()

    def drop(self, model: Model) -> None:
        """From now on, a model's cache is not kept up."""
        self._models = [kept for kept in self._models if kept is not model]
        if self._stored:
            self._stored.drop(model)

    def forget(self, number: int | None = None) -> None:
        """Make one sequence, or all, hold nothing."""
        for each in range(len(self)) if number is None else (number,):
            self._loading.pop(each, None)
            self._texts[each] = []
            self._owners[each] = None

    def _assign(self, writer: Writer, writers: Collection[Writer]) -> None:
        free = [number for number, owner in enumerate(self._owners) if owner not in writers]
        oldest = min(free, key=lambda number: (self._owners[number] is not None, self._used[number]))
        found = [self._usable(number, writer) for number in range(len(self))]
        usable = max(found)
        source = found.index(usable)
        in_place = source in free and (source == oldest or 2 * usable >= self._length(source))
        number, is_copied = (source, False) if in_place else (oldest, usable >= LEAST_COPIED)
        alike = common_prefix(self._texts[number], writer.text)
        self._loading.pop(number, None)
        if self._stored:
            self._stored.displace(number, alike)
        for model in self._models:
            sequences = model.cache.sequences
            if is_copied:
                sequences[number].take_from(sequences[source], usable)
            model.take_up(writer.request.prompt_length, usable if in_place or is_copied else alike, number)
        self._texts[number], self._owners[number], writer.sequence = writer.text, writer, number
        if self._stored:
            self._loading[number] = self._stored.loading(writer.text, number, writer.request.should_stop)

    def _usable(self, number: int, writer: Writer) -> int:
        """Tokens of a text that a sequence holds the rows of, but its last."""
        common = common_prefix(self._texts[number], writer.text)
        return min(common, self._length(number), len(writer.text) - 1)

    def _length(self, number: int) -> int:
        """Committed rows of the target."""
        return self._models[0].cache.sequences[number].length


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
