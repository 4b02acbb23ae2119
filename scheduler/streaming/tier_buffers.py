"""Allocates all memory for layers, on device and host, before anything is read: a shortage shows at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from loaders.io.byte_ranges import ByteRanges
from loaders.io.expert_parts import ExpertParts
from scheduler.plan.placement import Tier
from scheduler.plan.staging import staging_buffers
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.host_memory import HostBuffer, HostMemory


@dataclass(frozen=True)
class UnitBytes:
    """One layer: its size in the device's layout, its byte ranges on disk, and its expert parts if it has experts."""

    nbytes: int
    ranges: ByteRanges
    experts: ExpertParts | None = None


@dataclass(frozen=True)
class TierBuffers:
    """resident, host: by layer. slots: of the ring. staging: host buffers of `span_bytes`, for reads from disk."""

    resident: dict[int, Tensor]
    slots: list[Tensor]
    host: dict[int, HostBuffer]
    staging: list[HostBuffer]
    span_bytes: int

    @property
    def distinct_host(self) -> Iterator[tuple[int, HostBuffer]]:
        """Every host buffer once, with the first layer it belongs to."""
        seen: set[HostBuffer] = set()
        for index, buffer in self.host.items():
            if buffer not in seen:
                seen.add(buffer)
                yield index, buffer


def allocate_tiers(
    layers: Sequence[UnitBytes],
    tiers: Sequence[Tier],
    slots: int,
    memory: DeviceMemory,
    host: HostMemory,
    staged: bool,
) -> TierBuffers:
    """Buffers for layers in the given tiers; raises MemoryError, or PyTorch's OutOfMemoryError on a GPU.

    staged: whether the reader cannot write to the device's memory. Staging buffers are returned pinned if that is
    granted; buffers of the host tier are to be pinned once they are filled. Layers of the same byte ranges share one.
    """
    resident = {index: memory.empty(layers[index].nbytes) for index in _of(tiers, Tier.DEVICE)}
    streamed = [layers[index].nbytes for index, tier in enumerate(tiers) if tier is not Tier.DEVICE]
    slot_buffers = [memory.empty(max(streamed)) for _ in range(slots if streamed else 0)]
    span_bytes, staging = _staging(layers, tiers, host) if staged else (0, [])
    shared: dict[ByteRanges, HostBuffer] = {}
    for index in _of(tiers, Tier.HOST):
        if layers[index].ranges not in shared:
            shared[layers[index].ranges] = host.allocate(layers[index].nbytes)
    host_buffers = {index: shared[layers[index].ranges] for index in _of(tiers, Tier.HOST)}
    return TierBuffers(resident, slot_buffers, host_buffers, staging, span_bytes)


def _staging(layers: Sequence[UnitBytes], tiers: Sequence[Tier], host: HostMemory) -> tuple[int, list[HostBuffer]]:
    """(bytes per buffer, buffers)."""
    loaded, from_disk = ([layers[index].nbytes for index in _of(tiers, tier)] for tier in (Tier.DEVICE, Tier.DISK))
    span_bytes, count = staging_buffers(loaded, from_disk)
    buffers = [host.allocate(span_bytes) for _ in range(count)]
    for buffer in buffers:
        host.pin(buffer)
    return span_bytes, buffers


def _of(tiers: Sequence[Tier], wanted: Tier) -> list[int]:
    return [index for index, tier in enumerate(tiers) if tier is wanted]
