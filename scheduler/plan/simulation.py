"""The ring on paper: when every layer is read, copied and computed, and so how long a pass takes."""

from collections.abc import Sequence
from dataclasses import dataclass

# Passes after which slots and staging buffers are as full as they ever are; the last one is measured.
PASSES = 4


@dataclass(frozen=True)
class Stage:
    """Seconds one layer takes: to read into a staging buffer (0: it needs none), to copy into a slot (0: it is resident
    and needs no slot), to compute; and to read and to copy what only computing tells that it needs."""

    read: float
    copy: float
    compute: float
    fetch_read: float = 0.0
    fetch_copy: float = 0.0


@dataclass(frozen=True)
class PassSeconds:
    """A pass, and how long each part of the machine works for it: disk, link and device, side by side."""

    total: float
    disk: float
    link: float
    compute: float


def simulate(stages: Sequence[Stage], slots: int, staging: int, gap: float = 0.0) -> PassSeconds:
    """The pass that passes settle to, when each begins `gap` seconds after the one before (the draft works meanwhile).

    Reads, copies and computations each follow one another. A copy waits for its read and for its slot: until the layer
    `slots` copies before was computed. A read waits for the copy out of its buffer, `staging` reads before. Both go on
    in the gap. What is fetched is read and copied side by side, and the next layer behind it.
    """
    compute = sum(stage.compute for stage in stages)
    if not any(stage.copy or stage.fetch_copy for stage in stages):
        return PassSeconds(total=compute, disk=0.0, link=0.0, compute=compute)
    read_ends: list[float] = []
    copied_out: list[float] = []  # of the layers that were read
    copy_ends: list[float] = []
    released: list[float] = []
    now, begin = 0.0, 0.0
    for _ in range(PASSES):
        begin = now = now + gap
        for stage in stages:
            if stage.copy:
                start = max(_at(copy_ends, 1), _at(released, slots))
                if stage.read:
                    read_ends.append(max(_at(read_ends, 1), _at(copied_out, staging)) + stage.read)
                    start = max(start, read_ends[-1])
                copy_ends.append(start + stage.copy)
                now = max(now, copy_ends[-1])
            if stage.fetch_copy:
                copy_ends[-1] = max(copy_ends[-1], now) + stage.fetch_copy
                if stage.fetch_read:
                    read_ends[-1] = max(read_ends[-1], now) + stage.fetch_read
                now = max(copy_ends[-1], read_ends[-1] if stage.fetch_read else now)
            now += stage.compute
            if stage.copy:
                released.append(now)
            if stage.read:
                copied_out.append(copy_ends[-1])
    return PassSeconds(
        total=now - begin,
        disk=sum(stage.read + stage.fetch_read for stage in stages),
        link=sum(stage.copy + stage.fetch_copy for stage in stages),
        compute=compute,
    )


def _at(times: list[float], back: int) -> float:
    """The time `back` entries before the one to come; 0 before there were so many."""
    return times[-back] if len(times) >= back else 0.0
