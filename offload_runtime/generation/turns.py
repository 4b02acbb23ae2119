"""Threads take turns on one runtime: its caches, buffers and streams serve one pass at a time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from offload_runtime.errors import UsageError


class Turns:
    """A lock for passes: a thread waits while another has its turn, and may keep its own for several passes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._gate = threading.Lock()  # held by a thread that `between` lets wait: who has just had a turn comes after
        self._holder: int | None = None
        self._in_pass = False
        self._process = os.getpid()

    @property
    def in_fork(self) -> bool:
        """Whether this process is a copy of the one that loaded the models."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise UsageError in a fork: it has the memory but not the threads, so a pass would wait for ever."""
        if self.in_fork:
            raise UsageError(
                f"this runtime belongs to process {self._process}, of which this one, {os.getpid()}, is a fork without "
                "its threads. Load the model in the process that uses it, after the fork, or start that process anew: "
                'multiprocessing.get_context("spawn")'
            )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the turn for the block."""
        self.check_process()
        with self._turn():
            yield

    @contextmanager
    def take(self) -> Iterator[None]:
        """Keep the turn for one pass. Raises UsageError if this thread is in a pass already, called from a callback."""
        self.check_process()
        with self._turn():
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

    @contextmanager
    def between(self, seconds: float) -> Iterator[bool]:
        """Have the next turn, for something short; the block is told False if that takes more than `seconds`."""
        if self._holder == threading.get_ident():
            yield True
            return
        with self._gate:
            granted = self._lock.acquire(timeout=seconds)
        if not granted:
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._holder != threading.get_ident():
            with self._gate:
                pass
        with self._lock:
            before, self._holder = self._holder, threading.get_ident()
            try:
                yield
            finally:
                self._holder = before
