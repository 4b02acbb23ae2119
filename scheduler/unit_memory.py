"""Every unit's bytes in the tier that the plan gives it, and the ring that brings the streamed ones to the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.reader import WeightReader
from loaders.sources import UnitSource
from scheduler.device_memory import DeviceMemory
from scheduler.plan import Tier
from scheduler.ring import Ring


@dataclass(frozen=True)
class UnitBytes:
    """What one unit needs: its size in the device's layout, and where it lies on disk."""

    nbytes: int
    source: UnitSource


Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all."""


class UnitMemory:
    """Loads units on construction; afterwards `resident[unit]` is a device buffer, or `ring` streams the unit.

    units: in the order in which every pass uses them.
    tiers: one per unit. Units of the host tier with one source share one host buffer.
    slots: number of ring slots, used when any unit is not resident.
    reader: reads the units; closed here as soon as nothing more is to be read.
    """

    def __init__(
        self,
        units: Sequence[UnitBytes],
        tiers: Sequence[Tier],
        slots: int,
        reader: WeightReader,
        memory: DeviceMemory,
        on_progress: Progress | None = None,
    ):
        self._units, self._reader, self._memory = tuple(units), reader, memory
        self._staging: Tensor | None = None
        self.resident: dict[int, Tensor] = {}
        self._host: dict[UnitSource, Tensor] = {}
        self.ring: Ring | None = None
        # On a CPU the buffers that files are read through lie in device memory too.
        self._read_buffer_bytes = reader.bounce_bytes if memory.device.type == "cpu" else 0
        memory.add(self._read_buffer_bytes)
        try:
            self._load(tiers, on_progress)
            if Tier.DISK not in tiers:
                self._stop_reading()
            streamed = [index for index in range(len(units)) if index not in self.resident]
            if streamed:
                slot_bytes = max(units[index].nbytes for index in streamed)
                self.ring = Ring(streamed, [memory.empty(slot_bytes) for _ in range(slots)], self._fill_slot)
        except BaseException:
            self.close()
            raise
        self.streamed_bytes = sum(self._link_bytes(units[index]) for index in streamed)

    def close(self) -> None:
        """Stop streaming, close the files and let go of all buffers."""
        if self.ring:
            self.ring.close()
        self._stop_reading()
        self.ring = None
        self.resident.clear()
        self._host.clear()

    def _load(self, tiers: Sequence[Tier], on_progress: Progress | None) -> None:
        """Read what lies on the device or in host memory."""
        to_device = [unit.source for unit, tier in zip(self._units, tiers) if tier == Tier.DEVICE]
        to_host = {unit.source for unit, tier in zip(self._units, tiers) if tier == Tier.HOST}
        total = sum(source.nbytes_on_disk for source in (*to_device, *to_host))
        for index, (unit, tier) in enumerate(zip(self._units, tiers)):
            if tier == Tier.DEVICE:
                self.resident[index] = self._memory.empty(unit.nbytes)
                self._read_to_device(unit, self.resident[index])
            elif tier == Tier.HOST and unit.source not in self._host:
                self._host[unit.source] = torch.empty(unit.nbytes, dtype=torch.uint8)
                self._reader.fill(unit.source, self._host[unit.source])
            if on_progress and tier != Tier.DISK:
                on_progress(self._reader.bytes_read, total)

    def _stop_reading(self) -> None:
        self._reader.close()
        self._staging = None
        self._memory.remove(self._read_buffer_bytes)
        self._read_buffer_bytes = 0

    def _link_bytes(self, unit: UnitBytes) -> int:
        return unit.nbytes if unit.source in self._host else unit.source.nbytes_on_disk

    def _read_to_device(self, unit: UnitBytes, buffer: Tensor) -> None:
        """Read a unit from disk into a device buffer, through a staging buffer where the reader cannot write there."""
        if buffer.device.type == "cpu":
            self._reader.fill(unit.source, buffer)
            return
        if self._staging is None or len(self._staging) < unit.nbytes:
            self._staging = torch.empty(unit.nbytes, dtype=torch.uint8)
        staged = self._staging[: unit.nbytes]
        self._reader.fill(unit.source, staged)
        buffer.copy_(staged)  # from pageable memory: finished for the host when it returns, so staging is free again

    def _fill_slot(self, index: int, slot: Tensor) -> None:
        unit = self._units[index]
        buffer = slot[: unit.nbytes]
        host = self._host.get(unit.source)
        if host is not None:
            buffer.copy_(host, non_blocking=True)
        else:
            self._read_to_device(unit, buffer)
