"""Fetches single experts into a ring slot, once a pass has been routed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loaders.io.byte_ranges import ByteRanges
from loaders.io.spans import Span, batches, joined
from scheduler.streaming.host_memory import HostBuffer
from scheduler.streaming.link import Link
from scheduler.streaming.streams import Streams
from scheduler.streaming.tier_buffers import TierBuffers, UnitBytes

# One is read into while the other is copied from.
STAGING = 2


class ExpertFetch:
    """For the thread that computes. Copies run on the copying stream, after the copies that filled their slot.

    Beside a GPU, experts of the disk tier pass through two of the staging buffers; `staging_left` are the others. If
    those would be too few, `possible` is false: layers of that tier must then be streamed with all their experts.
    """

    def __init__(
        self,
        layers: Sequence[UnitBytes],
        buffers: TierBuffers,
        link: Link,
        read: Callable[[ByteRanges, Tensor], None],
        streams: Streams,
    ):
        self._layers, self._host, self._link, self._read, self._streams = layers, buffers.host, link, read, streams
        from_disk = {index for index in range(len(layers)) if index not in {*buffers.host, *buffers.resident}}
        staged = streams.is_async and any(layers[index].experts for index in from_disk)
        self.possible = not staged or len(buffers.staging) >= 2 * STAGING
        lent = STAGING if staged and self.possible else 0
        self._staging, self.staging_left = buffers.staging[:lent], buffers.staging[lent:]
        self._span_bytes = buffers.span_bytes
        self._sent = [streams.event() for _ in self._staging]
        self._arrived = streams.event()

    def __call__(self, layer: int, slot: Tensor, experts: Sequence[int]) -> int:
        """Bring some experts of a layer to its slot; the computing stream waits for them. Returns the bytes moved.

        Raises the error of a failed read.
        """
        parts = self._layers[layer].experts
        assert parts is not None
        wanted = parts.of(experts)
        from_host = layer in self._host
        if not from_host and not self._streams.is_async:
            self._read(joined((span.start, span) for span in wanted), slot)
        else:
            with torch.inference_mode(), self._streams.copying():
                if from_host:
                    self._send(wanted, self._host[layer], slot)
                else:
                    self._read_and_send(wanted, slot)
                self._arrived.record()
            self._arrived.wait()
        return sum(span.nbytes if from_host else span.nbytes_on_disk for span in wanted)

    def _send(self, wanted: Sequence[Span], buffer: HostBuffer, slot: Tensor) -> None:
        for span in wanted:
            self._link.send(slot[span.start : span.stop], buffer, span.start)

    def _read_and_send(self, wanted: Sequence[Span], slot: Tensor) -> None:
        for number, batch in enumerate(batches(wanted, self._span_bytes)):
            staging, sent = self._staging[number % STAGING], self._sent[number % STAGING]
            sent.synchronize()
            self._read(joined(batch), staging.tensor)
            for offset, span in batch:
                self._link.send(slot[span.start : span.stop], staging, offset)
            sent.record()
