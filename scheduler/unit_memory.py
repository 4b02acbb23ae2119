"""Every unit's bytes in the tier that the plan gives it, and the ring that brings the streamed ones to the device."""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import Tensor

from loaders.interrupts import interrupts_deferred
from loaders.reader import WeightReader
from loaders.spans import spans
from scheduler.bounce import Link
from scheduler.device_memory import DeviceMemory
from scheduler.host_memory import HostMemory, host_memory_for
from scheduler.loading import Loader, Progress
from scheduler.placement import Tier
from scheduler.prefetch import nothing
from scheduler.read_ahead import ReadAhead
from scheduler.ring import Ring
from scheduler.streams import Streams, streams_of
from scheduler.tier_buffers import TierBuffers, UnitBytes, allocate_tiers

__all__ = ["Progress", "UnitBytes", "UnitMemory"]


class UnitMemory:
    """Loads units on construction; afterwards `resident[unit]` is a device buffer, or `ring` streams the unit.

    units: in the order in which every pass uses them.
    tiers: one per unit. Units of the host tier with one source share one host buffer.
    slots: number of ring slots, used when any unit is not resident.
    reader: reads the units; closed here as soon as nothing more is to be read.
    pinned_limit: most bytes of host memory to pin for a GPU; None: as many as the system grants.
    streams, host: what the device's streams and the host's memory are; tests put theirs here.
    Raises MemoryError where the host has less memory than the units need.
    """

    def __init__(
        self,
        units: Sequence[UnitBytes],
        tiers: Sequence[Tier],
        slots: int,
        reader: WeightReader,
        memory: DeviceMemory,
        on_progress: Progress | None = None,
        pinned_limit: int | None = None,
        streams: Streams | None = None,
        host: HostMemory | None = None,
    ):
        self._units, self._tiers = tuple(units), tuple(tiers)
        self._reader, self._memory = reader, memory
        self._streams = streams or streams_of(memory.device)
        self._host = host or host_memory_for(memory.device, pinned_limit)
        self._buffers: TierBuffers | None = None
        self._read_ahead: ReadAhead | None = None
        self.resident: dict[int, Tensor] = {}
        self.ring: Ring | None = None
        # Where the reader writes to the device's memory itself, what it reads through lies there too.
        self._read_buffer_bytes = 0 if self._streams.is_async else reader.bounce_bytes
        memory.add(self._read_buffer_bytes)
        with interrupts_deferred() as heed_interrupts:
            try:
                self._link = Link(self._streams, self._host)
                buffers = allocate_tiers(units, tiers, slots, memory, self._host, self._streams.is_async)
                self._buffers, self.resident = buffers, buffers.resident
                Loader(reader, self._link, self._streams, self._host, buffers).load(units, on_progress)
                self._drop_what_only_loading_needed(buffers)
                self._begin_streaming(buffers)
                heed_interrupts()
            except BaseException:
                self.close()
                raise
        self.streamed_bytes = sum(self._link_bytes(index) for index in self._streamed)

    @property
    def pageable_bytes(self) -> int:
        """Bytes of the host tier that could not be pinned."""
        host = self._buffers.distinct_host if self._buffers else ()
        return sum(len(buffer.tensor) for _, buffer in host if not buffer.pinned)

    def close(self) -> None:
        """Stop streaming, close the files and let go of all buffers. Ctrl-C meanwhile is heeded when that is done."""
        with interrupts_deferred(), ExitStack() as steps:  # the last one first, each whatever becomes of the others
            steps.callback(self._let_go)
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

    def _let_go(self) -> None:
        self.ring = self._read_ahead = self._buffers = None
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
        restart = nothing
        if from_disk and self._streams.is_async:
            units = {index: self._units[index] for index in from_disk}
            order = [(index, spans(unit.source, unit.nbytes, buffers.span_bytes)) for index, unit in units.items()]
            self._read_ahead = ReadAhead(order, buffers.staging, self._reader.fill, self._streams)
            restart = self._read_ahead.restart
        self.ring = Ring(self._streamed, buffers.slots, self._fill_slot, self._streams, restart)

    def _fill_slot(self, index: int, slot: Tensor) -> None:
        assert self._buffers is not None
        unit = self._units[index]
        if index in self._buffers.host:
            self._link.send(slot[: unit.nbytes], self._buffers.host[index])
        elif self._read_ahead is not None:
            for span, staged in self._read_ahead.spans(index):
                self._link.send(slot[span.start : span.stop], staged)
        else:
            self._reader.fill(unit.source, slot[: unit.nbytes])

    def _link_bytes(self, index: int) -> int:
        unit = self._units[index]
        return unit.nbytes if self._tiers[index] is Tier.HOST else unit.source.nbytes_on_disk
