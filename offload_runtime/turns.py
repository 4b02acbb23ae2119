"""Threads take turns on one runtime: its caches, buffers and streams serve one pass at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from offload_runtime.errors import UsageError


class Turns:
    """Whoever comes while another thread has its turn waits. A thread that has it may hold on over several passes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._in_pass = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the turn for the block."""
        with self._lock:
            yield

    @contextmanager
    def take(self) -> Iterator[None]:
        """One pass. Raises UsageError where this thread is in the middle of one: a callback has called back."""
        with self._lock:
            if self._in_pass:
                raise UsageError(
                    "this runtime is in the middle of a pass: should_stop and progress callbacks cannot generate, "
                    "close or forget; let them return first"
                )
            self._in_pass = True
            try:
                yield
            finally:
                self._in_pass = False
