"""Ctrl-C as a request to stop the reply instead of the program."""

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

LEAVE_WITHIN = 2.0  # seconds: two Ctrl-C this close together mean leaving
REACT_WITHIN = 1.0  # seconds within which the main thread must begin to leave
TICK = 0.1


class Leave(KeyboardInterrupt):
    """Ctrl-C was pressed again, after the first one was answered on screen."""


def _nothing() -> None:
    """The default callback: does nothing."""


Answer = Callable[[Callable[[], None]], None]
"""Shows that Ctrl-C was noticed; it calls what it is given right before that."""


def _unseen(showing: Callable[[], None]) -> None:
    """The default answer: shows nothing."""
    showing()


class StopOnInterrupt:
    """In the block, a first Ctrl-C sets `requested`, which is polled between layers; a second raises Leave there.

    The second one counts only within two seconds of the first, and only once `answer` shows the first on screen;
    otherwise it counts as a first. Whoever answers says when that is: presses before it are dropped, none after it, as
    one may follow the answer at once. A thread handles both, so the answer appears even while the main thread is
    inside a call that takes seconds. If that call does not end within a second, the thread calls `abandon`. tick:
    called by the thread every tenth of a second. Only for the main thread. `pressed_at`: when Ctrl-C was last pressed,
    in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        answer: Answer = _unseen,
        tick: Callable[[], None] = _nothing,
        abandon: Callable[[], None] = _nothing,
    ) -> None:
        self.pressed_at = float("-inf")
        self._answer, self._tick, self._abandon = answer, tick, abandon
        self._requested = self._leaving = self._left = False
        self._previous: Any = None
        self._previous_fd = -1

    def requested(self) -> bool:
        """Whether Ctrl-C was pressed in this block."""
        return self._requested

    def __enter__(self) -> "StopOnInterrupt":
        self._requested = self._leaving = self._left = False
        self.pressed_at = float("-inf")
        self._done, self._wake = os.pipe()
        for descriptor in (self._done, self._wake):
            os.set_blocking(descriptor, False)
        self._previous = signal.signal(signal.SIGINT, self._on_interrupt)
        # The system's handler writes there at once, whatever the main thread is doing.
        self._previous_fd = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        signal.signal(signal.SIGINT, self._previous)
        os.close(self._wake)  # the thread reads the end of file and returns
        self._thread.join()
        os.close(self._done)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._leaving and not self._left:
            self._left = True
            raise Leave

    def _watch(self) -> None:
        while True:
            if select.select([self._done], [], [], TICK)[0]:
                signals = os.read(self._done, 64)
                if not signals:
                    return
                if signal.SIGINT in signals and not self._leaving:
                    self._press(time.monotonic())
            self._tick()
            if self._leaving and not self._left and time.monotonic() - self.pressed_at > REACT_WITHIN:
                self._abandon()

    def _press(self, now: float) -> None:
        again = self._requested and now - self.pressed_at <= LEAVE_WITHIN
        self.pressed_at = now
        if again:
            self._leaving = True
            _thread.interrupt_main()  # the main thread's handler may have run before this one knew
        else:
            self._requested = True
            self._answer(self._drop_presses)

    def _drop_presses(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._done, 64)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit in the block, so that it can save and clean up; nohup still works.

    Ctrl-C that hits a finalizer, where Python would print it and go on, is pressed again.
    """
    ends = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in ends:
        signal.signal(one, lambda number, frame: sys.exit(128 + number))
    unraisable, sys.unraisablehook = sys.unraisablehook, _press_again
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for one in ends:
            signal.signal(one, signal.SIG_DFL)


def _press_again(unraisable: "sys.UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(TICK, _thread.interrupt_main).start()  # once this hook is left, which it would end, too
    else:
        sys.__unraisablehook__(unraisable)
