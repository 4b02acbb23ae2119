"""The bandwidths that bound a streamed pass, measured in the same run: the disk's, and that of copies to a GPU."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loaders.io.direct import measure_read_bandwidth
from scheduler.plan.plan import Plan, Tier
from scheduler.streaming.bandwidth import link_figures
from scheduler.streaming.device_memory import release_cached


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
        parts = [(from_disk, self.disk), (streamed_bytes - from_disk, self.pinned or self.pageable)]
        times = [nbytes / rate if rate else None for nbytes, rate in parts if nbytes]
        return None if None in times else sum(time for time in times if time)


def measure_link(plan: Plan, files: Sequence[Path], direct: bool) -> Bandwidths:
    """Measure the paths that the plan's layers stream over. `direct`: the run reads past the page cache."""
    disk = measure_read_bandwidth(files, cached=not direct).bytes_per_second if Tier.DISK in plan.tiers else None
    on_gpu = Tier.HOST in plan.tiers and plan.device != "cpu"
    return Bandwidths(disk, *copy_bandwidths(torch.device(plan.device))) if on_gpu else Bandwidths(disk)


def copy_bandwidths(device: torch.device) -> tuple[float | None, float | None]:
    """Bytes per second of copies to a GPU from pinned memory, if so much can be pinned, and from pageable memory."""
    figures = link_figures(device)
    release_cached()
    return figures.get("link_bandwidth"), figures["pageable_bandwidth"]


def best(links: Iterable[Bandwidths]) -> Bandwidths:
    """The largest bandwidth of each path: a share of it is never flattered by a slow measurement."""
    every = list(links)

    def largest(name: str) -> float | None:
        return max((rate for link in every if (rate := getattr(link, name))), default=None)

    return Bandwidths(*map(largest, ("disk", "pinned", "pageable")))
