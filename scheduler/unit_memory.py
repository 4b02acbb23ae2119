"""Every unit's bytes in the tier that the plan gives it, and the ring that brings the streamed ones to the device."""

from collections.abc import Sequence
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


class UnitMemory:
    """Loads units on construction; afterwards `resident[unit]` is a device buffer, or `ring` streams the unit.

    units: in the order in which every pass uses them.
    tiers: one per unit. Units of the host tier with one source share one host buffer.
    slots: number of ring slots, used when any unit is not resident.
    """

    def __init__(
        self,
        units: Sequence[UnitBytes],
        tiers: Sequence[Tier],
        slots: int,
        reader: WeightReader,
        memory: DeviceMemory,
    ):
        self._units, self._reader, self._memory = tuple(units), reader, memory
        self._staging: Tensor | None = None
        self.resident = {i: self._load_resident(unit) for i, unit in enumerate(units) if tiers[i] == Tier.DEVICE}
        self._host: dict[UnitSource, Tensor] = {}
        for unit, tier in zip(units, tiers):
            if tier == Tier.HOST and unit.source not in self._host:
                self._host[unit.source] = self._read(unit, torch.empty(unit.nbytes, dtype=torch.uint8))
        streamed = [i for i in range(len(units)) if i not in self.resident]
        self.streamed_bytes = sum(self._link_bytes(units[i]) for i in streamed)
        self.ring = self._make_ring(streamed, slots) if streamed else None

    @property
    def seconds_streaming(self) -> float:
        """Seconds in which the link was busy, summed since the start."""
        return self.ring.seconds_filling if self.ring else 0.0

    def close(self) -> None:
        """Stop streaming. The buffers are freed with this object."""
        if self.ring:
            self.ring.close()

    def _link_bytes(self, unit: UnitBytes) -> int:
        return unit.nbytes if unit.source in self._host else unit.source.nbytes_on_disk

    def _make_ring(self, streamed: Sequence[int], slots: int) -> Ring:
        slot_bytes = max(self._units[i].nbytes for i in streamed)
        return Ring(streamed, [self._memory.empty(slot_bytes) for _ in range(slots)], self._fill_slot)

    def _read(self, unit: UnitBytes, buffer: Tensor) -> Tensor:
        self._reader.fill(unit.source, buffer)
        return buffer

    def _load_resident(self, unit: UnitBytes) -> Tensor:
        buffer = self._memory.empty(unit.nbytes)
        self._read_to_device(unit, buffer)
        return buffer

    def _read_to_device(self, unit: UnitBytes, buffer: Tensor) -> None:
        """Read a unit from disk into a device buffer, through a staging buffer where the reader cannot write there."""
        if buffer.device.type == "cpu":
            self._reader.fill(unit.source, buffer)
            return
        if self._staging is None or len(self._staging) < unit.nbytes:
            self._staging = torch.empty(unit.nbytes, dtype=torch.uint8)
        staged = self._read(unit, self._staging[: unit.nbytes])
        buffer.copy_(staged)  # from pageable memory: finished for the host when it returns, so staging is free again

    def _fill_slot(self, index: int, slot: Tensor) -> None:
        unit = self._units[index]
        buffer = slot[: unit.nbytes]
        host = self._host.get(unit.source)
        if host is not None:
            buffer.copy_(host, non_blocking=True)
        else:
            self._read_to_device(unit, buffer)
