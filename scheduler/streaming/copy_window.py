"""Copies to the device in pieces, only a few of them in flight, so that other uploads get their turn.

A GPU copies from the host with one engine, which serves the copies of all streams in order. If a whole layer is queued
at once, the upload of a few token ids waits for up to 1.7 GB: 70 ms over PCIe 4.0 x16. A piece of 16 MiB takes 0.7 ms.
Two in flight keep the link busy: while the engine copies one, the host wakes up at the end of the previous one, which
takes some 0.05 ms, and queues the next.
"""

import threading

from torch import Tensor

from scheduler.plan.staging import PIECE_BYTES, PIECES_IN_FLIGHT
from scheduler.streaming.streams import Streams


class CopyWindow:
    """A sliding window over all copied bytes, cut into pieces; one event for every piece in flight.

    Small copies share a piece and a large copy may end within one, so the bytes in flight always keep the link busy for
    the same time.
    """

    def __init__(self, streams: Streams):
        self._streams = streams
        self._ended = [streams.event() for _ in range(PIECES_IN_FLIGHT)]
        self._piece = self._room = 0  # the latest, and the bytes left in it
        self._lock = threading.Lock()  # held for one piece at a time: several threads may copy

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue the copy of `source` to `target` (both uint8 [n]) on the current stream, piece by piece.

        The host sleeps until all pieces but the last few have ended: for threads that only copy, and for callers that
        need the copied bytes at once.
        """
        begin = 0
        while begin < len(source):
            with self._lock:
                room = self._room or self._next_piece()
                end = min(begin + room, len(source))
                self._streams.copy(target[begin:end], source[begin:end])
                self._ended[self._piece].record()
                self._room = room - (end - begin)
            begin = end

    def _next_piece(self) -> int:
        """Wait until one piece less is in flight; return the bytes of the next piece."""
        self._piece = (self._piece + 1) % len(self._ended)
        self._ended[self._piece].synchronize()
        return PIECE_BYTES
