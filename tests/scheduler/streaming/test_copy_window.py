"""How long an upload waits behind the layers that cross the link, on a GPU with one copy engine; time is made up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from scheduler.streaming import copy_window
from scheduler.streaming.copy_window import CopyWindow
from scheduler.streaming.host_memory import HostBuffer
from scheduler.streaming.link import Link
from tests.fakes.fake_device import FakeStreams, fake_host

PIECE = 8192
PIECE_SECONDS = 1.0  # what a piece takes on the link
WAKING = 0.1  # from the end of a piece until the host asks for the next
UPLOAD_SECONDS = 1e-3


@dataclass(eq=False)
class Mark:
    """An event on the engine's clock."""

    engine: "OneQueue"
    ends: float = 0.0

    def record(self) -> None:
        self.ends = self.engine.free

    def wait(self) -> None: ...

    def synchronize(self) -> None:
        self.engine.host_waits_until(self.ends)


@dataclass(eq=False)
class OneQueue:
    """One copy engine that serves in the order of asking, and the host that asks; `uploads`: when others will ask.

    now: of the host. free: when the engine has nothing left to do. waited: how long each upload did.
    """

    uploads: list[float] = field(default_factory=list)
    now: float = 0.0
    free: float = 0.0
    idle: float = 0.0
    waited: list[float] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    is_async = True

    @contextmanager
    def copying(self) -> Iterator[None]:
        yield

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.pieces.append(len(source))
        self._serve(self.now, PIECE_SECONDS * len(source) / PIECE)
        target.copy_(source)

    def event(self) -> Mark:
        return Mark(self)

    def synchronize(self) -> None: ...

    def host_waits_until(self, end: float) -> None:
        """Uploads that are asked for meanwhile come behind what the engine has been given."""
        if end <= self.now:
            return
        self.now = end + WAKING
        while self.uploads and self.uploads[0] <= self.now:
            asked = self.uploads.pop(0)
            self.waited.append(self._serve(asked, UPLOAD_SECONDS))

    def _serve(self, asked: float, seconds: float) -> float:
        """How long it waited."""
        start = max(asked, self.free)
        self.idle += max(0.0, asked - self.free)
        self.free = start + seconds
        return start - asked


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_window, "PIECE_BYTES", PIECE)
    monkeypatch.setattr("scheduler.streaming.link.BOUNCE_CHUNK_BYTES", PIECE)


def sent(engine: OneQueue, pinned: bool, layers: int = 3, nbytes: int = 40 * PIECE + 100) -> Tensor:
    """Layers sent one after the other over that engine; the last one's bytes, right or not."""
    host, _ = fake_host(granted=None if pinned else 3 * PIECE)
    link, buffer = Link(engine, host), host.allocate(nbytes)
    buffer.tensor.copy_(torch.arange(nbytes) % 251)
    host.pin(buffer)
    assert buffer.pinned == pinned
    place = torch.zeros_like(buffer.tensor)
    for _ in range(layers):
        link.send(place, buffer)
    assert torch.equal(place, buffer.tensor)
    host.close()
    return place


def uploads() -> list[float]:
    """In mid-piece, just behind its beginning and just before its end, throughout."""
    return [number * 0.37 for number in range(1, 300)]


@pytest.mark.parametrize("pinned", [True, False])
def test_an_upload_waits_for_two_pieces_at_most(pinned: bool) -> None:
    engine = OneQueue(uploads())
    sent(engine, pinned)
    assert len(engine.waited) > 250 and max(engine.pieces) == PIECE
    assert max(engine.waited) <= 2 * PIECE_SECONDS + 10 * UPLOAD_SECONDS


def test_without_the_window_it_would_wait_for_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_window, "PIECE_BYTES", 40 * PIECE + 100)
    engine = OneQueue(uploads())
    sent(engine, pinned=True, layers=6)
    assert max(engine.waited) > 40 * PIECE_SECONDS


@pytest.mark.parametrize(("layers", "nbytes"), [(3, 40 * PIECE + 100), (1000, PIECE // 10 + 1), (60, PIECE * 3 // 2)])
@pytest.mark.parametrize(("in_flight", "idles"), [(copy_window.PIECES_IN_FLIGHT, False), (1, True)])
def test_the_link_never_idles(layers, nbytes, in_flight: int, idles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether layers are much larger or smaller than pieces."""
    monkeypatch.setattr(copy_window, "PIECES_IN_FLIGHT", in_flight)
    engine = OneQueue()
    sent(engine, True, layers, nbytes)
    assert (engine.idle > 0) == idles
    assert engine.free == pytest.approx(sum(engine.pieces) / PIECE * PIECE_SECONDS + engine.idle)


def test_the_host_is_back_before_the_last_pieces_have_ended() -> None:
    """So the next layer's first pieces are asked for in time."""
    engine = OneQueue()
    sent(engine, pinned=True, layers=1, nbytes=10 * PIECE)
    assert engine.free == 10 * PIECE_SECONDS and engine.now == pytest.approx(8 * PIECE_SECONDS + WAKING)


@pytest.mark.parametrize("nbytes", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE])
def test_pieces_cover_every_byte_once(nbytes: int) -> None:
    engine = OneQueue()
    source, target = torch.randint(256, (nbytes,), dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    CopyWindow(engine).copy(target, source)
    assert torch.equal(target, source) and sum(engine.pieces) == nbytes


def test_a_copy_that_fails_leaves_the_window_usable() -> None:
    engine = OneQueue()
    window, place = CopyWindow(engine), torch.zeros(4 * PIECE, dtype=torch.uint8)

    def failing(fail: Callable[[], bool]) -> Callable[[Tensor, Tensor], None]:
        def copy(target: Tensor, source: Tensor) -> None:
            if fail():
                raise RuntimeError("the link fell off")
            OneQueue.copy(engine, target, source)

        return copy

    engine.copy = failing(lambda: len(engine.pieces) == 2)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="fell off"):
        window.copy(place, torch.ones_like(place))
    engine.copy = failing(bool)  # type: ignore[method-assign]
    window.copy(place, torch.ones_like(place))
    assert place.all()


@pytest.mark.parametrize("pinned", [True, False])
def test_who_needs_a_few_bytes_soon_is_not_kept_waiting_by_who_fills_ahead(pinned: bool) -> None:
    """Routed experts come while the next layer does."""
    streams, (host, _) = FakeStreams(copy_seconds=0.002), fake_host(granted=None if pinned else 3 * PIECE)
    link, layer, experts = Link(streams, host), host.allocate(200 * PIECE), host.allocate(3 * PIECE)
    for buffer in (layer, experts):
        host.pin(buffer)
    begun, layer_pieces, copy = threading.Event(), [], streams.copy

    def counted(target: Tensor, source: Tensor) -> None:
        if threading.current_thread() is filling:
            layer_pieces.append(len(source))
            begun.set()
        copy(target, source)

    def send(buffer: HostBuffer) -> None:
        with torch.inference_mode(), streams.copying():
            link.send(torch.empty_like(buffer.tensor), buffer)

    filling = threading.Thread(target=send, args=(layer,))
    streams.copy = counted  # type: ignore[method-assign]
    filling.start()
    assert begun.wait(20)
    send(experts)
    assert len(layer_pieces) < 200 / 2
    filling.join()
    assert sum(layer_pieces) == 200 * PIECE
    streams.synchronize()
    host.close()
    streams.close()
