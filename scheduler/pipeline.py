"""The ring on paper: when every unit is read, copied and computed, and so how long a pass takes."""

from collections.abc import Sequence
from dataclasses import dataclass

# Passes after which slots and staging buffers are as full as they ever are; the last one is measured.
PASSES = 4


@dataclass(frozen=True)
class Stage:
    """Seconds one unit takes: to read into a staging buffer (0: it needs none), to copy into a slot (0: it is resident
    and needs no slot), to compute, and to fetch what only computing told it needs, for which it waits."""

    read: float
    copy: float
    compute: float
    fetch: float = 0.0


@dataclass(frozen=True)
class PassSeconds:
    """A pass, and how long each part of the machine works for it: disk, link and device, side by side."""

    total: float
    disk: float
    link: float
    compute: float


def simulate(stages: Sequence[Stage], slots: int, staging: int, gap: float = 0.0) -> PassSeconds:
    """The pass that passes settle to, when each begins `gap` seconds after the one before (the draft works meanwhile).

    Reads, copies and computations each follow one another. A copy waits for its read and for its slot: until the unit
    `slots` copies before was computed. A read waits for the copy out of its buffer, `staging` reads before. Both go on
    in the gap.
    """
    read_ends: list[float] = []
    copied_out: list[float] = []  # of the units that were read
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
            now += stage.compute + stage.fetch
            if stage.copy:
                released.append(now)
            if stage.read:
                copied_out.append(copy_ends[-1])
    link = sum(stage.copy + stage.fetch for stage in stages)
    return PassSeconds(
        total=max(now - begin, link) if any(stage.fetch for stage in stages) else now - begin,
        disk=sum(stage.read for stage in stages),
        link=link,
        compute=sum(stage.compute for stage in stages),
    )


def _at(times: list[float], back: int) -> float:
    """The time `back` entries before the one to come; 0 before there were so many."""
    return times[-back] if len(times) >= back else 0.0
