"""Which unit lives in which tier: as many on the device as fit, evenly over the depth; the rest streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from loaders.checkpoint.spec import UnitSpec
from scheduler.sizes import MIB

# A layer costs about 1 ms of Python and kernel launches, in which a link of 25 GB/s moves 25 MB. Below twice that the
# jitter of one layer is as long as the copy of the next.
SMALL_UNIT_BYTES = 50 * MIB
# With a mean below this share of the largest, units differ enough for short copies to meet long computations.
UNEVEN_SHARE = 0.75


class Tier(str, Enum):
    """Where a unit lives between its uses."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True)
class Placement:
    """One tier per unit, and the ring that units outside the device pass through (0 slots: nothing streams)."""

    tiers: tuple[Tier, ...]
    slots: int
    slot_bytes: int


def spread(count: int, total: int) -> list[bool]:
    """Mark `count` of `total` places so that neighbours are at most ceil(total / count) apart, round the end too."""
    return [(place + 1) * count // total > place * count // total for place in range(total)]


def bytes_in(units: Sequence[UnitSpec], tiers: Sequence[Tier], tier: Tier) -> int:
    """Bytes of the units in `tier`, in compute dtype."""
    return sum(unit.nbytes for unit, its in zip(units, tiers, strict=True) if its is tier)


def host_bytes(units: Sequence[UnitSpec], tiers: Sequence[Tier]) -> int:
    """Bytes of the buffers behind the units in HOST; units that are the same bytes on disk share one."""
    places = ((unit.stored_at or index, unit.nbytes) for index, unit in enumerate(units) if tiers[index] is Tier.HOST)
    return sum(dict(places).values())


def device_bytes(units: Sequence[UnitSpec], placement: Placement) -> int:
    """Bytes of resident units and slots."""
    return bytes_in(units, placement.tiers, Tier.DEVICE) + placement.slots * placement.slot_bytes


def wanted_slots(units: Sequence[UnitSpec]) -> int:
    """Two slots, or three where units are small or differ.

    One slot is filled while the other computes. Since a copy takes longer than the computation it hides, two keep the
    link busy, and a third saves no more link time than the same bytes resident would. It is worth having only where a
    short copy can end before a long computation does (units that differ) or where jitter counts (small units).
    """
    largest = max(unit.nbytes for unit in units)
    uneven = sum(unit.nbytes for unit in units) < UNEVEN_SHARE * largest * len(units)
    return 3 if uneven or largest < SMALL_UNIT_BYTES else 2


def place_on_device(units: Sequence[UnitSpec], room: int) -> Placement:
    """Place units in `room` bytes of the device and the others on DISK; the smallest ring if nothing fits.

    Of all placements that fit, the one with most resident bytes is taken: more room then never streams more, not even
    where units differ in size.
    """
    wanted, smallest = wanted_slots(units), _placement(units, 0, 2)
    if room < min(device_bytes(units, smallest), sum(unit.nbytes for unit in units)):
        return smallest
    fitting = [one for one in _candidates(tuple(units), wanted) if one[1] <= room]
    return max(fitting, key=lambda one: one[2])[0] if fitting else smallest


def place_on_host(
    units: Sequence[UnitSpec],
    placement: Placement,
    room: int,
    staging: Callable[[Sequence[UnitSpec], Sequence[Tier]], int],
) -> Placement:
    """Move streamed units from DISK to HOST, evenly, as many bytes as `room` holds.

    staging: the room that is taken by what the units left on DISK are read ahead into.
    """
    streamed = [index for index, tier in enumerate(placement.tiers) if tier is Tier.DISK]

    def fits(tiers: tuple[Tier, ...]) -> bool:
        return host_bytes(units, tiers) + staging(units, tiers) <= room

    most = _with_host(placement.tiers, streamed, len(streamed))
    if not fits(most):
        fewer = (_with_host(placement.tiers, streamed, count) for count in range(len(streamed) - 1, -1, -1))
        fitting = filter(fits, fewer)
        most = max(fitting, key=lambda tiers: bytes_in(units, tiers, Tier.HOST), default=placement.tiers)
    return replace(placement, tiers=most)


@lru_cache(maxsize=8)  # a plan weighs trees of many sizes, which leave different room for the same units
def _candidates(units: tuple[UnitSpec, ...], slots: int) -> list[tuple[Placement, int, int]]:
    """A placement for every number of resident units, the most first; its bytes on the device; the resident ones."""
    placements = [_placement(units, resident, slots) for resident in range(len(units), -1, -1)]
    return [(one, device_bytes(units, one), bytes_in(units, one.tiers, Tier.DEVICE)) for one in placements]


def _placement(units: Sequence[UnitSpec], resident: int, slots: int) -> Placement:
    marks = spread(resident, len(units))
    streamed = [unit.nbytes for unit, marked in zip(units, marks, strict=True) if not marked]
    tiers = tuple(Tier.DEVICE if marked else Tier.DISK for marked in marks)
    return Placement(tiers, slots if streamed else 0, max(streamed, default=0))


def _with_host(tiers: tuple[Tier, ...], streamed: Sequence[int], count: int) -> tuple[Tier, ...]:
    marks = dict(zip(streamed, spread(count, len(streamed)), strict=True))
    return tuple(Tier.HOST if marks.get(index) else tier for index, tier in enumerate(tiers))
