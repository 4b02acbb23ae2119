"""The disk tier beside a GPU: its layers are read ahead of need into pinned staging buffers, in spans.

The partition is static, and so is the order: spans of all layers of the tier, pass after pass, past the end of each. A
span is a fraction of a layer, so that its first part crosses the link while the next is read, and little staging will
do where little memory can be pinned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from loaders.io.byte_ranges import ByteRanges
from loaders.io.spans import Span
from scheduler.streaming.host_memory import HostBuffer
from scheduler.streaming.prefetch import Prefetcher
from scheduler.streaming.streams import Streams

# With two reads at a time the disk goes on while the last bytes of a span arrive.
THREADS = 2


class ReadAhead:
    """Spans of layers, read into `buffers` in the order in which they are needed.

    order: (layer, its spans), as every pass needs them. read: `read(ranges, tensor)` fills a host tensor from disk.
    wanted: `wanted(layer, span)` is asked, in a thread, just before a span is read; others are left out.
    A buffer is read into again when the copy out of it has ended: for that the reading thread waits on the host, as
    nobody else does.
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
        """The spans read of `layer`, which must be next in order; each is free for others once the next is asked for.

        For the thread that queues the copies, with the copying stream current. Raises what a read raised.
        """
        for index, span in enumerate(self._spans[layer]):
            with self._staged(layer, index) as place:
                if self._was_read[place]:
                    yield span, self._buffers[place]

    def has_failed(self) -> bool:
        """Whether a read has, and nobody was told yet."""
        return self._prefetcher.has_failed

    def restart(self) -> None:
        """Start over at the first layer, unless it is the next anyway."""
        self._prefetcher.restart()

    def close(self) -> None:
        """End the threads, after the reads under way."""
        self._prefetcher.close()

    @contextmanager
    def _staged(self, layer: int, index: int) -> Iterator[int]:
        place = self._prefetcher.acquire((layer, index))
        try:
            yield place
        finally:
            self._copied[place].record()
        self._prefetcher.release()

    def _read_span(self, item: tuple[int, int], place: int) -> None:
        layer, index = item
        span = self._spans[layer][index]
        self._was_read[place] = self._wanted(layer, span)
        if not self._was_read[place]:
            return
        self._copied[place].synchronize()
        with torch.inference_mode():
            self._read(span.ranges, self._buffers[place].tensor[: span.nbytes])
