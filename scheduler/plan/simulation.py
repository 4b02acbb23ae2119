"""Simulates the ring: when each layer is read, copied and computed, and so how long a pass takes."""

from collections.abc import Sequence
from dataclasses import dataclass

# After this many passes, slots and staging buffers are in steady state; the last pass is measured.
PASSES = 4


@dataclass(frozen=True)
class Stage:
    """Seconds of one layer: to read into a staging buffer (0: not needed), to copy into a slot (0: resident), to
    compute, and to read and copy experts that are known only once the router has run."""

    read: float
    copy: float
    compute: float
    fetch_read: float = 0.0
    fetch_copy: float = 0.0


@dataclass(frozen=True)
class PassSeconds:
    """A pass, and how long disk, link and device each work for it, concurrently."""

    total: float
    disk: float
    link: float
    compute: float


def simulate(stages: Sequence[Stage], slots: int, staging: int, gap: float = 0.0) -> PassSeconds:
    """A pass in steady state, if each begins `gap` seconds after the previous one ends (the draft runs in between).

    Reads, copies and computations each run one at a time. A copy waits for its read and for its slot, which is free
    once the layer `slots` copies earlier was computed. A read waits for the copy out of its buffer, `staging` reads
    earlier. Both continue in the gap. Fetched experts are read and copied concurrently, before the next layer.
    """
    compute = sum(stage.compute for stage in stages)
    if not any(stage.copy or stage.fetch_copy for stage in stages):
        return PassSeconds(total=compute, disk=0.0, link=0.0, compute=compute)
    copied_out: list[float] = []  # of the layers read from disk
    released: list[float] = []
    read_end, copy_end = 0.0, 0.0  # of the last read and the last copy
    now, begin = 0.0, 0.0
    for _ in range(PASSES):
        begin = now = now + gap
        for stage in stages:
            if stage.copy:
                start = max(copy_end, _at(released, slots))
                if stage.read:
                    read_end = max(read_end, _at(copied_out, staging)) + stage.read
                    start = max(start, read_end)
                copy_end = start + stage.copy
                now = max(now, copy_end)
            if stage.fetch_copy:
                copy_end = max(copy_end, now) + stage.fetch_copy
                if stage.fetch_read:
                    read_end = max(read_end, now) + stage.fetch_read
                now = max(copy_end, read_end if stage.fetch_read else now)
            now += stage.compute
            if stage.copy:
                released.append(now)
            if stage.read:
                copied_out.append(copy_end)
    return PassSeconds(
        total=now - begin,
        disk=sum(stage.read + stage.fetch_read for stage in stages),
        link=sum(stage.copy + stage.fetch_copy for stage in stages),
        compute=compute,
    )


def _at(times: list[float], back: int) -> float:
    """The time `back` entries before the next one; 0 if there are not so many yet."""
    return times[-back] if len(times) >= back else 0.0
