"""Keeps the KV rows of texts on disk, and gives them to texts of later runs that begin alike.

A text that has ended is written behind its user's back: a thread copies its rows a block at a time, between two passes,
and writes them while passes go on. What it has not written when the rows are needed for another text, or when the
models are freed, is written then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from loaders.message_text import message_text
from offload_runtime.model.model import Model, never
from offload_runtime.prompt_cache.block_file import Tables
from offload_runtime.prompt_cache.blocks import Block
from offload_runtime.prompt_cache.notes import Notes
from offload_runtime.prompt_cache.stored_rows import StoredRows

LEAST_KEPT = 256  # tokens; shorter texts are read again in next to no time
TICK = 0.1  # seconds between two looks at whether the thread should end
PATIENCE = 1.0  # seconds that the end of the program waits for a pass of another thread

Between = Callable[[float], AbstractContextManager[bool]]
"""A block between two passes; if it has to wait for more than so many seconds, it is told False and must do nothing."""


@dataclass(frozen=True)
class _Unwritten:
    """A block whose rows sequence `number` holds. when: in nanoseconds, when its text was used."""

    stored: StoredRows
    block: Block
    number: int
    when: int


class PromptCache:
    """stored: of each model, the target's first. All methods are for the thread whose turn it is."""

    def __init__(self, stored: Sequence[StoredRows], notes: Notes, between: Between):
        self._stored, self._notes, self._between = list(stored), notes, between
        self._unwritten: deque[_Unwritten] = deque()  # changed by the thread whose turn it is
        self._given_up: set[tuple[StoredRows, int]] = set()  # texts of which a block could not be written
        self._is_paused = False
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def loading(self, text: Sequence[int], number: int, should_stop: Callable[[], bool] = never) -> Iterator[None]:
        """Gives sequence `number`, whose rows are those of the beginning of `text`, what is stored of the rest.

        Piece by piece, one with each step of the iterator; nothing else may change the sequence meanwhile.
        """
        if self._is_paused:
            return
        most = len(text) - 1  # the last token is read in any case: the next one follows from it
        for stored in [*self._stored]:
            if stored in self._stored:  # its model was not dropped meanwhile
                yield from stored.loading(text, number, most, should_stop)
            most = min(most, self._stored[0].model.cache.sequences[number].length)
        self._notes.warn()

    def keep(self, text: Sequence[int], number: int) -> None:
        """A text has ended: what is not stored of it yet is written from now on, while sequence `number` holds it."""
        if self._is_paused or self._stored[0].model.cache.sequences[number].length < LEAST_KEPT:
            return
        when = time.time_ns()
        for stored in self._stored:
            self._unwritten += [_Unwritten(stored, block, number, when) for block in stored.missing(text, number)]
        if self._unwritten:
            self._wake_thread()
        self._notes.warn()

    def displace(self, number: int, kept: int) -> None:
        """All but the first `kept` rows of a sequence are about to become another text's: write what must be."""
        for one in [one for one in self._unwritten if one.number == number and one.block.end > kept]:
            self._unwritten.remove(one)
            self._write(one, self._take(one))

    def drop(self, model: Model) -> None:
        """From now on, nothing is stored or read for a model."""
        self._stored = [stored for stored in self._stored if stored.model is not model]
        self._unwritten = deque(one for one in self._unwritten if one.stored.model is not model)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, no rows are read or kept."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def close(self) -> None:
        """Write what is not written yet. Nothing is read or kept afterwards."""
        self._ending.set()
        self._wake.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        try:
            with self._between(PATIENCE) as our_turn:
                while our_turn and (taken := self._take_next()):
                    self._write(*taken)
        finally:
            self._is_paused = True
            self._unwritten.clear()
        self._notes.warn()

    def _wake_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_in_turn, name="prompt cache", daemon=True)
            self._thread.start()
        self._wake.set()

    def _write_in_turn(self) -> None:
        """The thread: copies a block between two passes, then writes it, until `close`."""
        while True:
            self._wake.wait()
            if self._ending.is_set():
                return
            taken = None
            with self._between(TICK) as our_turn:
                if our_turn:
                    taken = self._take_next()
                    if taken is None:
                        self._wake.clear()
            if taken:
                self._write(*taken)

    def _take_next(self) -> tuple[_Unwritten, Tables] | None:
        """The next block to write, with a copy of its rows; None if there is none."""
        while self._unwritten:
            one = self._unwritten.popleft()
            rows = self._take(one)
            if rows is not None:
                return one, rows
        self._given_up.clear()
        return None

    def _take(self, one: _Unwritten) -> Tables | None:
        return None if (one.stored, one.when) in self._given_up else one.stored.take(one.block, one.number)

    def _write(self, one: _Unwritten, rows: Tables | None) -> None:
        """Write a block, if it has rows. What follows one that cannot be written would be of no use."""
        if rows is None:
            return
        try:
            if one.stored.write(one.block, rows, one.when):
                return
            self._notes.say("room", "it has no room for all of a text: --prompt-cache-size SIZE allows more")
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self._notes.say("writing", message_text(f"{where}{error.strerror}, so what is new is not kept"))
        self._given_up.add((one.stored, one.when))
