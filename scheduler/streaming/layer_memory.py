"""Holds every layer's bytes in its planned tier, and the ring that streams layers to the device."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from loaders.io.byte_ranges import bytes_on_disk
from loaders.io.expert_parts import split_experts
from loaders.io.reader import WeightReader
from loaders.io.sources import code_sources, map_sources
from loaders.io.spans import Span, spans
from loaders.modules.skeleton import Skeleton
from loaders.progress import ByteProgress
from loaders.quantize.interrupts import interrupts_deferred
from loaders.safetensors_files.headers import Checkpoint
from scheduler.plan.placement import Tier
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.expert_fetch import ExpertFetch
from scheduler.streaming.host_memory import HostMemory, host_memory_for
from scheduler.streaming.link import Link
from scheduler.streaming.loading import Loader
from scheduler.streaming.prefetch import nothing
from scheduler.streaming.read_ahead import ReadAhead
from scheduler.streaming.ring import Ring
from scheduler.streaming.run_ahead import RunAhead
from scheduler.streaming.streams import Streams, streams_of
from scheduler.streaming.tier_buffers import TierBuffers, UnitBytes, allocate_tiers

__all__ = ["LayerMemory", "UnitBytes", "units_of"]


def units_of(skeleton: Skeleton, checkpoint: Checkpoint) -> list[UnitBytes]:
    """Every layer, what lies outside the layers, and the codes apart. Raises what `map_sources` raises."""
    layers = (*skeleton.layers, skeleton.embeddings_and_head, *skeleton.codes)
    of_layers, of_embeddings_and_head = map_sources(skeleton, checkpoint)
    return [
        UnitBytes(layer.layout.nbytes, ranges, split_experts(layer, ranges))
        for layer, ranges in zip(layers, (*of_layers, of_embeddings_and_head, *code_sources(skeleton)))
    ]


@dataclass(frozen=True)
class _Filled:
    """What a slot was filled with: the bytes moved, and whether the layer is complete."""

    nbytes: int
    whole: bool


class LayerMemory:
    """Loads layers on construction; afterwards `resident[layer]` is a device buffer, or `ring` streams the layer.

    After `stream_experts(only_routed=True)` the ring is filled without experts. If `lacks_experts`, the user of a layer
    then fetches the routed ones; the memory of the others holds bytes of other layers. Slots that were filled before
    such a change stay valid, so it may come at any time.

    layers: in the order in which every pass uses them.
    tiers: one per layer. Layers of the host tier with the same byte ranges share one host buffer.
    slots: number of ring slots, used when any layer is not resident.
    reader: reads the layers; closed here as soon as nothing more will be read.
    pinned_limit: most bytes of host memory to pin for a GPU; None: as many as the system grants.
    streams, host: the device's streams and the host's memory; tests pass their own.
    Raises MemoryError if the host has less memory than the layers need.
    """

    def __init__(
        self,
        layers: Sequence[UnitBytes],
        tiers: Sequence[Tier],
        slots: int,
        reader: WeightReader,
        memory: DeviceMemory,
        on_progress: ByteProgress | None = None,
        pinned_limit: int | None = None,
        streams: Streams | None = None,
        host: HostMemory | None = None,
    ):
        self._layers, self._tiers = tuple(layers), tuple(tiers)
        self._reader, self._memory = reader, memory
        self._streams = streams or streams_of(memory.device)
        self._host = host or host_memory_for(memory.device, pinned_limit)
        self._buffers: TierBuffers | None = None
        self._read_ahead: ReadAhead | None = None
        self._expert_fetch: ExpertFetch | None = None
        self._lacking: tuple[int, Tensor] | None = None  # the layer acquired last and its slot
        self._only_routed = False
        self.crossed_bytes = 0  # of all layers acquired so far
        self.run_ahead = RunAhead(self._streams.event)
        self.resident: dict[int, Tensor] = {}
        self.ring: Ring[_Filled] | None = None
        # If the reader writes to the device's memory itself (a CPU), its read buffers are there as well.
        self._read_buffer_bytes = 0 if self._streams.is_async else reader.bounce_bytes
        memory.add(self._read_buffer_bytes)
        with interrupts_deferred() as check_interrupts:
            try:
                self._link = Link(self._streams, self._host)
                buffers = allocate_tiers(layers, tiers, slots, memory, self._host, self._streams.is_async)
                self._buffers, self.resident = buffers, buffers.resident
                Loader(reader, self._link, self._streams, self._host, buffers).load(layers, on_progress)
                self._drop_what_only_loading_needed(buffers)
                self._begin_streaming(buffers)
                check_interrupts()
            except BaseException:
                self.close()
                raise
        # of a pass that is routed to all experts
        self.streamed_bytes = sum(self._link_bytes(index) for index in self._streamed)

    @property
    def pageable_bytes(self) -> int:
        """Bytes of the host tier that could not be pinned."""
        host = self._buffers.distinct_host if self._buffers else ()
        return sum(len(buffer.tensor) for _, buffer in host if not buffer.pinned)

    def replace(self, layer: int, buffer: Tensor) -> None:
        """Make `buffer`, in device memory, the layer's resident bytes; the previous buffer is freed.

        Nobody else may hold the previous buffer or views of it.
        """
        self._memory.remove(len(self.resident[layer]))
        self.resident[layer] = buffer
        self._memory.release_unused()

    def acquire(self, layer: int) -> int:
        """The slot index of a streamed layer, which must be next in order. See `Ring.acquire`."""
        assert self.ring is not None
        self._lacking = None
        slot = self.ring.acquire(layer)
        if not self.ring.is_paused:
            filled = self.ring.filled[slot]
            self.crossed_bytes += filled.nbytes
            self._lacking = None if filled.whole else (layer, self.ring.slots[slot])
        return slot

    @property
    def reading(self) -> tuple[int, float]:
        """(bytes, seconds) read from disk so far, loading included."""
        return self._reader.bytes_read, self._reader.busy_seconds

    @property
    def streams_experts(self) -> bool:
        """Whether streamed layers have experts that can be fetched one by one."""
        has_experts = any(self._layers[index].experts for index in self._streamed)
        return has_experts and self._expert_fetch is not None and self._expert_fetch.possible

    def stream_experts(self, only_routed: bool) -> None:
        """Set whether the ring leaves experts out from now on."""
        self._only_routed = only_routed and self.streams_experts

    @property
    def lacks_experts(self) -> bool:
        """Whether the routed experts of the layer acquired last must still be fetched."""
        return self._lacking is not None

    def fetch_experts(self, experts: Sequence[int]) -> None:
        """Bring these experts to the slot of the layer acquired last; computation queued from now on finds them there.

        Raises the error of a failed read. Then, and after Ctrl-C, the layer must be acquired again, in another pass.
        """
        assert self._lacking is not None and self._expert_fetch is not None
        with interrupts_deferred():
            self.crossed_bytes += self._expert_fetch(*self._lacking, experts)

    def close(self) -> None:
        """Stop streaming, close the files and free all buffers. Ctrl-C meanwhile takes effect afterwards."""
        with interrupts_deferred(), ExitStack() as steps:  # run last to first, each even if others fail
            steps.callback(self._drop_buffers)
            steps.callback(self._host.close)
            steps.callback(self._streams.synchronize)
            steps.callback(self._stop_reading)
            if self._read_ahead:
                steps.callback(self._read_ahead.close)
            if self.ring:
                steps.callback(self.ring.close)
            self._reader.stop()

    @property
    def _streamed(self) -> list[int]:
        return [index for index, tier in enumerate(self._tiers) if tier is not Tier.DEVICE]

    def _drop_buffers(self) -> None:
        self.ring = self._read_ahead = self._expert_fetch = self._buffers = self._lacking = None
        self.resident = {}

    def _drop_what_only_loading_needed(self, buffers: TierBuffers) -> None:
        if Tier.DISK not in self._tiers:
            self._stop_reading()
            while buffers.staging:
                self._host.free(buffers.staging.pop())
        if all(buffer.pinned for buffer in (*buffers.staging, *buffers.host.values())):
            self._link.drop_bounce()

    def _stop_reading(self) -> None:
        self._reader.close()
        self._memory.remove(self._read_buffer_bytes)
        self._read_buffer_bytes = 0

    def _begin_streaming(self, buffers: TierBuffers) -> None:
        if not self._streamed:
            return
        from_disk = [index for index in self._streamed if self._tiers[index] is Tier.DISK]
        restart: Callable[[], None] = nothing
        will_fail: Callable[[], bool] = bool
        self._expert_fetch = ExpertFetch(self._layers, buffers, self._link, self._reader.fill, self._streams)
        if from_disk and self._streams.is_async:
            order = [(index, self._spans(index, buffers.span_bytes)) for index in from_disk]
            staging = self._expert_fetch.staging_left
            self._read_ahead = ReadAhead(order, staging, self._reader.fill, self._streams, self._is_wanted)
            restart, will_fail = self._read_ahead.restart, self._read_ahead.has_failed
        self.ring = Ring(self._streamed, buffers.slots, self._fill_slot, self._streams, restart, will_fail)

    def _spans(self, index: int, span_bytes: int) -> tuple[Span, ...]:
        layer = self._layers[index]
        return spans(layer.ranges, layer.nbytes, span_bytes, layer.experts.dense.stop if layer.experts else 0)

    def _is_wanted(self, index: int, span: Span) -> bool:
        """Whether a span should be read ahead."""
        experts = self._layers[index].experts
        return experts is None or not self._only_routed or span.start < experts.dense.stop

    def _fill_slot(self, index: int, slot: Tensor) -> _Filled:
        assert self._buffers is not None
        layer = self._layers[index]
        if index not in self._buffers.host and self._read_ahead is not None:
            sent = 0
            for span, staged in self._read_ahead.spans(index):
                self._link.send(slot[span.start : span.stop], staged)
                sent += span.nbytes_on_disk
            return _Filled(sent, sent == bytes_on_disk(layer.ranges))
        dense = layer.experts.dense if layer.experts and self._only_routed else None
        nbytes, ranges = (dense.stop, dense.ranges) if dense else (layer.nbytes, layer.ranges)
        if index in self._buffers.host:
            self._link.send(slot[:nbytes], self._buffers.host[index])
            return _Filled(nbytes, dense is None)
        self._reader.fill(ranges, slot[:nbytes])
        return _Filled(bytes_on_disk(ranges), dense is None)

    def _link_bytes(self, index: int) -> int:
        layer = self._layers[index]
        return layer.nbytes if self._tiers[index] is Tier.HOST else bytes_on_disk(layer.ranges)
