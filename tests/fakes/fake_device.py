"""A device made of threads, whose copies and computations really come late; and a system that grants pinned memory.

Streams are threads that work through what they are given. Nothing but events orders two of them, so what the code
under test forgets to order happens in the wrong order.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from scheduler.streaming.host_memory import HostMemory

_pending: list[int] = []  # addresses that have yet to be copied from, on all fake devices


class Stream:
    """Work in order, in a thread of its own."""

    def __init__(self, name: str):
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"fake {name}", daemon=True)
        self._thread.start()

    def give(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def synchronize(self) -> None:
        done = threading.Event()
        self.give(done.set)
        assert done.wait(20), "the fake device hangs"

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while (work := self._work.get()) is not None:
                work()


class Inline:
    """The calling thread as a stream."""

    def give(self, work: Callable[[], None]) -> None:
        work()

    def close(self) -> None: ...


class FakeEvent:
    """Of `FakeStreams`, which may leave out waiting."""

    def __init__(self, streams: "FakeStreams"):
        self._streams, self._mark = streams, threading.Event()
        self._mark.set()

    def record(self) -> None:
        self._mark = threading.Event()
        self._streams.current.give(self._mark.set)

    def wait(self) -> None:
        current, mark = self._streams.current, self._mark
        if self._streams.forgets != self._streams.name_of(current):
            current.give(lambda: mark.wait(20))

    def synchronize(self) -> None:
        self._streams.host_waits[threading.current_thread().name] += 1
        if self._streams.forgets != "host":
            assert self._mark.wait(20), "the fake device hangs"


class FakeStreams:
    """forgets: who does not heed events, "compute", "copy" or "host": what a missing wait would do.

    copy_seconds: how late each copy comes. `compute` gives the computing stream work. inline: computations run where
    they are asked for, as PyTorch's do on a CPU; only copies come late then.
    """

    is_async = True

    def __init__(self, copy_seconds: float = 0.0, forgets: str | None = None, inline: bool = False):
        self.copy_seconds, self.forgets = copy_seconds, forgets
        self.computing: Stream | Inline = Inline() if inline else Stream("compute")
        self._copying = Stream("copy")
        self._local = threading.local()
        self.host_waits: Counter[str] = Counter()  # by thread
        self.copies = 0

    @property
    def current(self) -> Stream | Inline:
        return getattr(self._local, "stream", self.computing)

    def name_of(self, stream: Stream | Inline) -> str:
        return "compute" if stream is self.computing else "copy"

    @contextmanager
    def copying(self) -> Iterator[None]:
        self._local.stream = self._copying
        try:
            yield
        finally:
            del self._local.stream

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self.current is self._copying, "copies go to the copying stream"

        pending = source.data_ptr()

        def late() -> None:
            time.sleep(self.copy_seconds)
            target.copy_(source)
            _pending.remove(pending)

        self.copies += 1
        _pending.append(pending)
        self.current.give(late)

    def compute(self, work: Callable[[], None]) -> None:
        self.computing.give(work)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def synchronize(self) -> None:
        self._copying.synchronize()

    def close(self) -> None:
        self.computing.close()
        self._copying.close()


class FakePinning:
    """Grants `limit` bytes, or all there are; what is granted is listed in `held`."""

    def __init__(self, limit: int | None = None):
        self.limit, self.asked = limit, 0
        self.held: dict[int, int] = {}

    def register(self, address: int, nbytes: int) -> bool:
        assert address % 4096 == 0 and nbytes % 4096 == 0 and address not in self.held
        self.asked += 1
        if self.limit is not None and sum(self.held.values()) + nbytes > self.limit:
            return False
        self.held[address] = nbytes
        return True

    def unregister(self, address: int) -> None:
        end = address + self.held.pop(address)
        assert not any(address <= start < end for start in _pending), "unpinned while a copy is pending"


def fake_host(granted: int | None = None, limit: int | None = None) -> tuple[HostMemory, FakePinning]:
    pinning = FakePinning(granted)
    return HostMemory(pinning, limit), pinning
