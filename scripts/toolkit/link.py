"""The bandwidths that bound a streamed pass, measured in the same run: the disk's, and that of copies to a GPU."""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from loaders.io.direct import measure_read_bandwidth
from scheduler.plan.plan import Plan, Tier
from scheduler.streaming.device_memory import release_cached
from scheduler.streaming.host_memory import HostBuffer, host_memory_for

SECONDS = 0.5  # per measurement
COPY_BYTES = 1 << 28
COPIES = 8


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second; None where the path is not used, does not exist or refuses.

    disk: of reading the model's files as the run reads them. pinned, pageable: of copies from host memory to the GPU.
    """

    disk: float | None = None
    pinned: float | None = None
    pageable: float | None = None

    def pass_seconds(self, plan: Plan, streamed_bytes: int) -> float | None:
        """The least time in which a pass could stream its bytes; None if a bandwidth that counts is unknown.

        Layers from disk and from host memory share the slots, so their times add up.
        """
        from_disk = streamed_bytes if plan.device == "cpu" else min(plan.disk_bytes, streamed_bytes)
        host = self.pinned or self.pageable
        parts = [(from_disk, self.disk), (streamed_bytes - from_disk, host)]
        times = [nbytes / rate if rate else None for nbytes, rate in parts if nbytes]
        return None if None in times else sum(time for time in times if time)


def measure_link(plan: Plan, files: Sequence[Path], direct: bool) -> Bandwidths:
    """Measure the paths that the plan's layers stream over. `direct`: the run reads past the page cache."""
    disk = _disk_bandwidth(files, direct) if Tier.DISK in plan.tiers else None
    if Tier.HOST not in plan.tiers:
        return Bandwidths(disk)
    device = torch.device(plan.device)
    return Bandwidths(disk, copy_bandwidth(device, pinned=True), copy_bandwidth(device, pinned=False))


def best(links: Iterable[Bandwidths]) -> Bandwidths:
    """The largest bandwidth of each path: a share of it is never flattered by a slow measurement."""

    def largest(rates: Iterable[float | None]) -> float | None:
        return max((rate for rate in rates if rate), default=None)

    links = list(links)
    return Bandwidths(*(largest(getattr(link, name) for link in links) for name in ("disk", "pinned", "pageable")))


def _disk_bandwidth(files: Sequence[Path], direct: bool) -> float:
    return measure_read_bandwidth(files, SECONDS, cached=not direct).bytes_per_second


def copy_bandwidth(device: torch.device, pinned: bool) -> float | None:
    """Bytes per second of copies from host memory to `device`; None if so much memory cannot be pinned."""
    if device.type != "cuda":
        return None
    with closing(host_memory_for(device, None)) as host:
        source = host.allocate(COPY_BYTES)
        source.tensor.fill_(1)  # untouched memory is one page of zeros, which copies faster than memory does
        if pinned:
            host.pin(source)
        try:
            return _copy_bandwidth(device, source) if source.pinned == pinned else None
        finally:
            torch.cuda.synchronize(device)  # memory that is copied from must stay pinned
            release_cached()


def _copy_bandwidth(device: torch.device, source: HostBuffer) -> float:
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target.copy_(source.tensor, non_blocking=source.pinned)  # the first copy wakes the link
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(COPIES):
        target.copy_(source.tensor, non_blocking=source.pinned)
    torch.cuda.synchronize(device)
    return COPIES * COPY_BYTES / (time.perf_counter() - begin)
