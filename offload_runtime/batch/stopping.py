"""Ctrl-C and SIGTERM end a job in order; a second one ends it at once, which loses no finished reply either."""

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """In the block, the first signal sets `requested`, which is polled between layers; the second interrupts.

    signal_number: of the first one; None before. Signals that the caller ignores stay ignored. For the main thread.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether the job has to end."""
        return self.signal_number is not None

    def __enter__(self) -> "StopOnSignal":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested():
            raise KeyboardInterrupt
        self.signal_number = number
