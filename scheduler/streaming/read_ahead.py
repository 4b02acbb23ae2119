"""The disk tier beside a GPU: its layers are read ahead of need into pinned staging buffers, in spans.

The spans and their order are fixed: all layers of the tier, pass after pass, without a stop at the end of a pass. A
span is a fraction of a layer, so one part of a layer crosses the link while the next is read, and little staging memory
is enough if little can be pinned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from loaders.io.byte_ranges import ByteRanges
from loaders.io.spans import Span
from scheduler.streaming.host_memory import HostBuffer
from scheduler.streaming.prefetch import Prefetcher
from scheduler.streaming.streams import Streams

# With two concurrent reads the disk stays busy while the last bytes of a span arrive.
THREADS = 2


class ReadAhead:
    """Spans of layers, read into `buffers` in the order in which they are needed.

    order: (layer, its spans), in the order of every pass. read: `read(ranges, tensor)` fills a host tensor from disk.
    wanted: `wanted(layer, span)` is called in a thread just before a span is read; unwanted spans are skipped.
    A buffer is reused once the copy out of it has ended: only the reading thread waits for that on the host.
    """

    def __init__(
        self,
        order: Sequence[tuple[int, Sequence[Span]]],
        buffers: Sequence[HostBuffer],
        read: Callable[[ByteRanges, torch.Tensor], None],
        streams: Streams,
        wanted: Callable[[int, Span], bool],
    ):
        self._spans, self._buffers, self._read, self._wanted = dict(order), tuple(buffers), read, wanted
        self._was_read = [False for _ in buffers]
        self._copied = [streams.event() for _ in buffers]
        items = [(layer, index) for layer, unit_spans in order for index in range(len(unit_spans))]
        self._prefetcher = Prefetcher(items, len(buffers), self._read_span, min(THREADS, len(buffers)), "read-ahead")

    def spans(self, layer: int) -> Iterator[tuple[Span, HostBuffer]]:
        """The spans read of `layer`, which must be next in order; asking for the next one frees the previous buffer.

        For the thread that queues the copies, with the copying stream current. Raises the error of a failed read.
        """
        for index, span in enumerate(self._spans[layer]):
            with self._staged(layer, index) as slot:
                if self._was_read[slot]:
                    yield span, self._buffers[slot]

    def has_failed(self) -> bool:
        """Whether a read has failed and its error was not raised yet."""
        return self._prefetcher.has_failed

    def restart(self) -> None:
        """Start over at the first layer, unless it is next anyway."""
        self._prefetcher.restart()

    def close(self) -> None:
        """End the threads, after the reads in progress."""
        self._prefetcher.close()

    @contextmanager
    def _staged(self, layer: int, index: int) -> Iterator[int]:
        slot = self._prefetcher.acquire((layer, index))
        try:
            yield slot
        finally:
            self._copied[slot].record()
        self._prefetcher.release()

    def _read_span(self, item: tuple[int, int], slot: int) -> None:
        layer, index = item
        span = self._spans[layer][index]
        self._was_read[slot] = self._wanted(layer, span)
        if not self._was_read[slot]:
            return
        self._copied[slot].synchronize()
        with torch.inference_mode():
            self._read(span.ranges, self._buffers[slot].tensor[: span.nbytes])
