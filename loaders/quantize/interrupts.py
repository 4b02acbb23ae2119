"""Defers Ctrl-C until work that must not be interrupted is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Deferred:
    """A Ctrl-C handler that records the signal for the previous handler."""

    def __init__(self, previous: Any):
        self._previous = previous
        self._noted: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._noted.append((number, frame))

    def heed(self) -> None:
        """Pass a recorded Ctrl-C to the previous handler, once. May raise KeyboardInterrupt."""
        if self._noted and callable(self._previous):
            first = self._noted[0]
            self._noted.clear()
            self._previous(*first)


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C within the block; it is handled when the block calls the yielded function, and at the end.

    For blocks that end soon or call that function often. A nested block is part of the outer one. Outside the main
    thread, which alone receives Ctrl-C, this has no effect.
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
