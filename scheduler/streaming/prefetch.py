"""Threads that fetch items in a fixed cyclic order into a few slots, as far ahead of their use as slots allow."""

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

# Python lets a thread run for 5 ms while others wait. PCIe 4.0 x16 moves 125 MB in that time; two pieces in flight are
# 32 MB. Beside a thread of pure Python, a thread that sleeps 0.7 ms at a time woke 7 ms late with 5 ms and 0.4 ms late
# with 0.2 ms (medians; two loaded x86-64 cores). Beside torch calls, which release the GIL, both were on time.
SWITCH_SECONDS = 0.2e-3

_lock = threading.Lock()
_blocks = 0
_usual = 0.0


def nothing() -> None:
    """Does nothing: the default callback."""


class Prefetcher(Generic[Item]):
    """Items are fetched in the order of their use, `order[0], order[1], …, order[0], …`, the n-th into
    slot n % slots.

    fetch: `fetch(item, slot)` brings one item; called in a thread, concurrently if there are several `threads`. It
    does not stop at the end of a round, only when every slot is full. One thread acquires and releases.
    """

    def __init__(
        self,
        order: Sequence[Item],
        slots: int,
        fetch: Callable[[Item, int], None],
        threads: int = 1,
        name: str = "prefetch",
    ):
        assert order and slots >= 1 and threads >= 1
        self._order, self._slots, self._fetch = tuple(order), slots, fetch
        self._lock = threading.Lock()  # used directly: Ctrl-C cannot come between acquiring it and entering its block
        self._changed = threading.Condition(self._lock)
        self._begun = self._acquired = self._released = 0  # numbers of items so far
        self._fetching: set[int] = set()
        self._ready: set[int] = set()
        self._closed = self._restarting = False
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def acquire(self, item: Item) -> int:
        """Wait until `item`, which must be next in order, is there; return its slot.

        Raises the error of a failed `fetch`, and RuntimeError when this is closed.
        """
        with self._lock:
            number = self._acquired
            assert self._order[number % len(self._order)] == item, "items are used in order"
            self._changed.wait_for(lambda: number in self._ready or self._is_lost(number))
            if number not in self._ready:
                raise self._error or RuntimeError("closed: nothing more comes")
            self._ready.remove(number)
            self._acquired += 1
        return number % self._slots

    @property
    def oldest(self) -> int:
        """The slot of the item that is released next."""
        return self._released % self._slots

    def release(self) -> None:
        """Release the oldest acquired item: its slot may be refilled."""
        with self._lock:
            self._released += 1
            self._changed.notify_all()

    @property
    def has_failed(self) -> bool:
        """Whether a fetch has failed and its error was not raised to the caller yet."""
        return self._error is not None

    def restart(self, meanwhile: Callable[[], None] = nothing, anyway: bool = False) -> None:
        """Start over at the first item if a round was abandoned in the middle or a fetch failed, or `anyway`.

        In that case `meanwhile` is called while nothing is being fetched.
        """
        with self._lock:
            if (
                not anyway
                and self._error is None
                and self._acquired == self._released
                and self._acquired % len(self._order) == 0
            ):
                return
            self._restarting = True
            try:
                self._changed.wait_for(lambda: not self._fetching)
                meanwhile()
                self._begun = self._acquired = self._released = 0
                self._ready.clear()
                self._error = None
            finally:
                self._restarting = False
                self._changed.notify_all()

    def wait_until_full(self) -> None:
        """Wait until every slot holds an item that was not acquired yet. Raises the error of a failed fetch."""
        with self._lock:
            self._changed.wait_for(lambda: len(self._ready) == self._slots or self._error is not None)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the threads, after the fetches in progress."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _is_lost(self, number: int) -> bool:
        """Whether the item will never arrive."""
        return self._closed or (self._error is not None and number not in self._fetching)

    def _work(self) -> None:
        while (number := self._next_number()) is not None:
            error = self._fetch_number(number)
            with self._lock:
                self._fetching.remove(number)
                if error is None:
                    self._ready.add(number)
                self._error = self._error or error
                self._changed.notify_all()

    def _next_number(self) -> int | None:
        """Wait until a slot is free; None when this is closed."""
        with self._lock:
            self._changed.wait_for(lambda: self._closed or self._may_begin())
            if self._closed:
                return None
            number = self._begun
            self._begun += 1
            self._fetching.add(number)
            return number

    def _may_begin(self) -> bool:
        blocked = self._error is not None or self._restarting
        return not blocked and self._begun - self._released < self._slots

    def _fetch_number(self, number: int) -> BaseException | None:
        try:
            self._fetch(self._order[number % len(self._order)], number % self._slots)
        except BaseException as error:  # of any kind: raised to the caller of acquire
            return error
        return None


@contextmanager
def quick_thread_switching() -> Iterator[None]:
    """For the block, no thread holds the GIL for long while another waits for it; blocks may overlap."""
    global _blocks, _usual
    with _lock:
        if not _blocks:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, SWITCH_SECONDS))
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                sys.setswitchinterval(_usual)
