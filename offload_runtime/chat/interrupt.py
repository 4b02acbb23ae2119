"""Ctrl-C as a wish to stop the reply rather than the program."""

import signal
import time
from types import FrameType
from typing import Any


class StopOnInterrupt:
    """For the block: the first Ctrl-C sets `requested`, which is polled between units; a second raises there and then.

    Only for the main thread. `pressed_at` is when Ctrl-C was last pressed, in seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.pressed_at = float("-inf")
        self._requested = False
        self._previous: Any = None

    def requested(self) -> bool:
        """Whether Ctrl-C was pressed in this block."""
        return self._requested

    def __enter__(self) -> "StopOnInterrupt":
        self._requested = False
        self._previous = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        self.pressed_at = time.monotonic()
