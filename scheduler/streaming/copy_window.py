"""Copies to the device in pieces, of which only a few are in flight, so that other uploads get their turn.

A GPU copies from the host with one engine, which serves all streams in the order in which they ask. Given a whole layer
at once, it makes the upload of a few token ids wait for up to 1.7 GB: 70 ms over PCIe 4.0 x16. A piece of 16 MiB takes
0.7 ms. Two in flight keep the link busy: the engine copies one while the host is woken by the end of the one before,
which takes some 0.05 ms, and asks for the next.
"""

import threading

from torch import Tensor

from scheduler.plan.staging import PIECE_BYTES, PIECES_IN_FLIGHT
from scheduler.streaming.streams import Streams


class CopyWindow:
    """A sliding window over all bytes that are copied, cut into pieces; one event for every piece in flight.

    Small copies share a piece, and a large one ends within one, so that whatever is copied, what is in flight keeps the
    link busy for the same time.
    """

    def __init__(self, streams: Streams):
        self._streams = streams
        self._ended = [streams.event() for _ in range(PIECES_IN_FLIGHT)]
        self._piece = self._room = 0  # the latest, and what is left of it
        self._lock = threading.Lock()  # for a piece at a time: several threads may copy

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Give the current stream the copy of `source` to `target` (both uint8 [n]), piece by piece.

        The host sleeps until all pieces but the last ones have ended: for threads that do nothing but copy, and for who
        needs at once what is copied.
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
        """Wait until one piece less is in flight; the bytes of the one that begins."""
        self._piece = (self._piece + 1) % len(self._ended)
        self._ended[self._piece].synchronize()
        return PIECE_BYTES
