"""Ctrl-C that waits until something that must not be left half done is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Deferred:
    """A handler of Ctrl-C that notes it for the one before."""

    def __init__(self, previous: Any):
        self._previous = previous
        self._noted: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._noted.append((number, frame))

    def heed(self) -> None:
        """Handle what was noted as it would have been, once: this may raise KeyboardInterrupt."""
        if self._noted and callable(self._previous):
            first = self._noted[0]
            self._noted.clear()
            self._previous(*first)


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """For the block, Ctrl-C is noted; it is handled where the block calls what it is given, and at the end.

    For blocks that end soon or call that often. Inside another such block this is part of it, and in threads other
    than the main one, which no Ctrl-C reaches, without effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    previous = signal.getsignal(signal.SIGINT)
    if isinstance(previous, _Deferred):
        yield previous.heed
        return
    deferred = _Deferred(previous)
    signal.signal(signal.SIGINT, deferred)
    try:
        yield deferred.heed
    finally:
        signal.signal(signal.SIGINT, previous)
        deferred.heed()
