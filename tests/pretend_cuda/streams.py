"""Streams of the pretended GPU: what is ordered by events, copies that come as late as they may, pinned memory.

Computations run when they are asked for. Copies between pinned memory and the device are put off until the host waits
for them, or until work that is ordered behind them touches the same device memory; so memory that the host reuses too
early changes what arrives. Work of two streams on the same bytes that no event orders is a fault.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count as count_up

import torch
from torch import Tensor

from tests.pretend_cuda.counts import asker, counted

CUDA = torch.device("cuda", 0)


class PretendFault(RuntimeError):
    """What a GPU would answer with wrong values, and perhaps not every time."""


Clock = dict["Stream", int]
"""How much of each stream's work is known to be done."""


class Stream:
    """Work in order. Stands in for `torch.cuda.Stream`."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.device, self.given = CUDA, 0
        self.behind: Clock = {}

    def wait_stream(self, other: "Stream") -> None:
        merge(self.behind, other.now())

    def wait_event(self, event: "Event") -> None:
        merge(self.behind, event.mark)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        host_waits(self.now())

    def query(self) -> bool:
        return timeline.host.get(self, 0) >= self.given

    def now(self) -> Clock:
        """What is done once everything given to it so far is."""
        mark = dict(self.behind)
        merge(mark, timeline.host)
        mark[self] = self.given
        return mark


class Event:
    """A mark in a stream's work. Stands in for `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.mark: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.mark = (stream or current_stream()).now()

    def wait(self, stream: Stream | None = None) -> None:
        merge((stream or current_stream()).behind, self.mark)

    def synchronize(self) -> None:
        if not self.query():
            host_waits(self.mark)

    def query(self) -> bool:
        return all(timeline.host.get(stream, 0) >= given for stream, given in self.mark.items())

    def elapsed_time(self, end: "Event") -> float:
        return 1e-3


@dataclass
class Access:
    """Of bytes begin to end of a block, by a stream's work number `given`."""

    begin: int
    end: int
    stream: Stream
    given: int
    writes: bool


@dataclass(eq=False)
class Block:
    """Device memory of one storage. `memory` holds its values; it is free once no tensor lies in it any more."""

    address: int
    nbytes: int
    stream: Stream
    given: int
    accesses: list[Access] | None = None  # None until another stream than that which made it touches it
    number: int = field(default_factory=count_up().__next__)  # in the order in which they were made

    def __post_init__(self) -> None:
        self._timeline = timeline
        self._timeline.allocate(self.nbytes)
        counted().allocated += self.nbytes

    def __del__(self) -> None:
        self._timeline.allocate(-self.nbytes)

    def touch(self, memory: Tensor, writes: bool) -> None:
        """The current stream's newest work reads or writes the memory of a tensor that lies in the block."""
        stream = current_stream()
        if self.accesses is None and stream is self.stream and not timeline.pending:
            self.given = stream.given
            return
        begin, end = extent(memory)
        timeline.arrive(stream, begin, end)
        if self.accesses is None:
            if stream is self.stream:
                self.given = stream.given
                return
            whole = (self.address, self.address + self.nbytes)
            self.accesses = [Access(*whole, self.stream, self.given, True)]
        for other in self.accesses:
            apart = other.end <= begin or end <= other.begin or not (writes or other.writes)
            if not apart and not is_done(other.stream, other.given, stream):
                raise timeline.fault(f"{asker()} touches memory that another stream may still be using")
        self.accesses = [
            old
            for old in self.accesses
            if old.stream is not stream or old.writes > writes or old.begin < begin or end < old.end
        ]
        self.accesses.append(Access(begin, end, stream, stream.given, writes))


@dataclass(eq=False)
class _Copy:
    target: Tensor
    source: Tensor
    host: Tensor  # which of the two lies in host memory
    stream: Stream
    given: int


@dataclass
class Timeline:
    """Everything that goes on at the device. pinned: registered host memory, address to bytes."""

    host: Clock = field(default_factory=dict)
    default: Stream = field(default_factory=Stream)
    pinned: dict[int, int] = field(default_factory=dict)
    pending: list[_Copy] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    held: int = 0
    peak: int = 0
    copied: int = 0  # bytes that crossed the link

    def fault(self, reason: str) -> PretendFault:
        """The error to raise, which the fixture finds even if somebody catches it."""
        self.faults.append(reason)
        return PretendFault(reason)

    def allocate(self, nbytes: int) -> None:
        self.held += nbytes
        self.peak = max(self.peak, self.held)

    def is_pinned(self, tensor: Tensor) -> bool:
        begin, end = extent(tensor)
        return any(start <= begin and end <= start + nbytes for start, nbytes in self.pinned.items())

    def copy_later(self, target: Tensor, source: Tensor, host: Tensor) -> None:
        """Both as they lie in memory; the current stream's newest work copies one to the other."""
        stream = current_stream()
        self.pending.append(_Copy(target, source, host, stream, stream.given))

    def arrive(self, stream: Stream, begin: int, end: int) -> None:
        """Copies that overlap the bytes and are ordered before the stream's next work are done now."""
        for copy in [*self.pending]:
            device = copy.target if copy.host is copy.source else copy.source
            first, last = extent(device)
            if first < end and begin < last and is_done(copy.stream, copy.given, stream):
                self._do(copy)

    def everything(self) -> Clock:
        """What is done once the whole device has nothing left to do."""
        mark = self.default.now()
        for copy in self.pending:
            merge(mark, copy.stream.now())
        return mark

    def host_knows(self, mark: Clock) -> None:
        merge(self.host, mark)
        for copy in [*self.pending]:
            if self.host.get(copy.stream, 0) >= copy.given:
                self._do(copy)

    def register(self, address: int, nbytes: int) -> None:
        self.pinned[address] = nbytes

    def unregister(self, address: int) -> None:
        if address not in self.pinned:
            raise self.fault("memory that is not pinned is unregistered")
        end = address + self.pinned[address]
        for copy in self.pending:
            first, last = extent(copy.host)
            if first < end and address < last:
                raise self.fault("pinned memory is unregistered while a copy is pending")
        del self.pinned[address]

    def _do(self, copy: _Copy) -> None:
        self.pending.remove(copy)
        with torch.inference_mode():
            copy.target.copy_(copy.source)


class _Current(threading.local):
    stream: Stream | None = None


_current = _Current()
timeline = Timeline()
lock = threading.RLock()


def start() -> Timeline:
    """A device that nothing has happened on."""
    global timeline
    timeline = Timeline()
    _current.stream = None
    return timeline


def current_stream(device: object = None) -> Stream:
    return _current.stream or timeline.default


def set_stream(stream: Stream | None) -> None:
    _current.stream = stream


@contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    """Stands in for `torch.cuda.stream`."""
    before = _current.stream
    _current.stream = stream or before
    try:
        yield
    finally:
        _current.stream = before


def host_waits(mark: Clock | None = None) -> None:
    """The host waits for what the mark says, or for everything given to the current stream."""
    counted().waits[asker()] += 1
    with lock:
        timeline.host_knows(current_stream().now() if mark is None else mark)


def is_done(stream: Stream, given: int, before: Stream) -> bool:
    """Whether a stream's work is done before the next of another one starts."""
    return stream is before or max(before.behind.get(stream, 0), timeline.host.get(stream, 0)) >= given


def merge(into: Clock, mark: Clock) -> None:
    for stream, given in mark.items():
        into[stream] = max(into.get(stream, 0), given)


def extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the tensor's first byte to behind its last."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * tensor.element_size()
