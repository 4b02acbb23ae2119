"""The link: copies from host memory to the device, directly from pinned memory, else through a few pinned chunks.

CUDA copies pageable memory through a buffer of its own and blocks the calling thread until it is done. Here the host
copies one part into the next pinned chunk while the previous chunk crosses the link.
"""

import threading

from torch import Tensor

from scheduler.plan.staging import BOUNCE_CHUNK_BYTES, BOUNCE_CHUNKS
from scheduler.streaming.copy_window import CopyWindow
from scheduler.streaming.host_memory import HostBuffer, HostMemory
from scheduler.streaming.streams import Streams


class Bounce:
    """A ring of pinned chunks. Events prevent writing to a chunk before its last copy has ended."""

    def __init__(self, chunks: list[HostBuffer], window: CopyWindow, streams: Streams):
        self._chunks, self._window = [chunk.tensor for chunk in chunks], window
        self._copied = [streams.event() for _ in chunks]
        self._next = 0
        self._lock = threading.Lock()  # held for one chunk at a time: several threads may send

    def send(self, target: Tensor, source: Tensor) -> None:
        """Queue all copies from pageable memory `source` to `target` (both uint8 [n]) on the current stream.

        The host waits for chunks to become free, never for the last copies.
        """
        for part, destination in zip(source.split(len(self._chunks[0])), target.split(len(self._chunks[0]))):
            with self._lock:
                event, chunk = self._copied[self._next], self._chunks[self._next][: len(part)]
                event.synchronize()
                chunk.copy_(part)
                self._window.copy(destination, chunk)
                event.record()
                self._next = (self._next + 1) % len(self._chunks)


class Link:
    """Sends host buffers to the device, in pieces; for threads in which the copying stream is current.

    Its chunks are pinned before anything else: if little can be pinned, they are worth most.
    """

    def __init__(self, streams: Streams, host: HostMemory):
        self._host, self._window = host, CopyWindow(streams)
        self._chunks = [host.allocate(BOUNCE_CHUNK_BYTES) for _ in range(BOUNCE_CHUNKS if streams.is_async else 0)]
        for chunk in self._chunks:
            host.pin(chunk)
        usable = [chunk for chunk in self._chunks if chunk.pinned]
        self._bounce = Bounce(usable, self._window, streams) if len(usable) > 1 else None

    def send(self, target: Tensor, buffer: HostBuffer, start: int = 0) -> None:
        """Queue the copy of `buffer` from byte `start` on to all of `target` (uint8 [n]) on the current stream.

        The host waits until all pieces but the last few have ended.
        """
        source = buffer.tensor[start : start + len(target)]
        if buffer.pinned or self._bounce is None:
            self._window.copy(target, source)
        else:
            self._bounce.send(target, source)

    def drop_bounce(self) -> None:
        """Free the chunks, once everything that will be sent is pinned."""
        self._bounce = None
        while self._chunks:
            self._host.free(self._chunks.pop())
