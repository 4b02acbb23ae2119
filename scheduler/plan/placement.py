"""Which layer lives in which tier: as many on the device as fit, evenly over the depth; the rest streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from loaders.checkpoint.spec import LayerSpec
from loaders.sizes import MIB

# A layer costs about 1 ms of Python and kernel launches, in which a link of 25 GB/s moves 25 MB. Below twice that the
# jitter of one layer is as long as the copy of the next.
SMALL_UNIT_BYTES = 50 * MIB
# With a mean below this share of the largest, layers differ enough for short copies to meet long computations.
UNEVEN_SHARE = 0.75


class Tier(str, Enum):
    """Where a layer lives between its uses."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True)
class Placement:
    """One tier per layer, and the ring that layers outside the device pass through (0 slots: nothing streams)."""

    tiers: tuple[Tier, ...]
    slots: int
    slot_bytes: int


def spread(count: int, total: int) -> list[bool]:
    """Mark `count` of `total` places so that neighbours are at most ceil(total / count) apart, round the end too."""
    return [(place + 1) * count // total > place * count // total for place in range(total)]


def bytes_in(layers: Sequence[LayerSpec], tiers: Sequence[Tier], tier: Tier) -> int:
    """Bytes of the layers in `tier`, in compute dtype."""
    return sum(layer.nbytes for layer, its in zip(layers, tiers, strict=True) if its is tier)


def host_bytes(layers: Sequence[LayerSpec], tiers: Sequence[Tier]) -> int:
    """Bytes of the buffers behind the layers in HOST; layers that are the same bytes on disk share one."""
    places = (
        (layer.stored_at or index, layer.nbytes) for index, layer in enumerate(layers) if tiers[index] is Tier.HOST
    )
    return sum(dict(places).values())


def device_bytes(layers: Sequence[LayerSpec], placement: Placement) -> int:
    """Bytes of resident layers and slots."""
    return bytes_in(layers, placement.tiers, Tier.DEVICE) + placement.slots * placement.slot_bytes


def wanted_slots(layers: Sequence[LayerSpec]) -> int:
    """Two slots, or three where layers are small or differ.

    One slot is filled while the other computes. Since a copy takes longer than the computation it hides, two keep the
    link busy, and a third saves no more link time than the same bytes resident would. It is worth having only where a
    short copy can end before a long computation does (layers that differ) or where jitter counts (small layers).
    """
    largest = max(layer.nbytes for layer in layers)
    uneven = sum(layer.nbytes for layer in layers) < UNEVEN_SHARE * largest * len(layers)
    return 3 if uneven or largest < SMALL_UNIT_BYTES else 2


def place_on_device(layers: Sequence[LayerSpec], room: int) -> Placement:
    """Place layers in `room` bytes of the device and the others on DISK; the smallest ring if nothing fits.

    Of all placements that fit, the one with most resident bytes is taken: more room then never streams more, not even
    where layers differ in size.
    """
    wanted, smallest = wanted_slots(layers), _placement(layers, 0, 2)
    if room < min(device_bytes(layers, smallest), sum(layer.nbytes for layer in layers)):
        return smallest
    fitting = [one for one in _candidates(tuple(layers), wanted) if one[1] <= room]
    return max(fitting, key=lambda one: one[2])[0] if fitting else smallest


def place_on_host(
    layers: Sequence[LayerSpec],
    placement: Placement,
    room: int,
    staging: Callable[[Sequence[LayerSpec], Sequence[Tier]], int],
) -> Placement:
    """Move streamed layers from DISK to HOST, evenly, as many bytes as `room` holds.

    staging: the room that is taken by what the layers left on DISK are read ahead into.
    """
    streamed = [index for index, tier in enumerate(placement.tiers) if tier is Tier.DISK]

    def fits(tiers: tuple[Tier, ...]) -> bool:
        return host_bytes(layers, tiers) + staging(layers, tiers) <= room

    most = _with_host(placement.tiers, streamed, len(streamed))
    if not fits(most):
        fewer = (_with_host(placement.tiers, streamed, count) for count in range(len(streamed) - 1, -1, -1))
        fitting = filter(fits, fewer)
        most = max(fitting, key=lambda tiers: bytes_in(layers, tiers, Tier.HOST), default=placement.tiers)
    return replace(placement, tiers=most)


@lru_cache(maxsize=8)  # a plan weighs trees of many sizes, which leave different room for the same layers
def _candidates(layers: tuple[LayerSpec, ...], slots: int) -> list[tuple[Placement, int, int]]:
    """A placement for every number of resident layers, the most first; its bytes on the device; the resident ones."""
    placements = [_placement(layers, resident, slots) for resident in range(len(layers), -1, -1)]
    return [(one, device_bytes(layers, one), bytes_in(layers, one.tiers, Tier.DEVICE)) for one in placements]


def _placement(layers: Sequence[LayerSpec], resident: int, slots: int) -> Placement:
    marks = spread(resident, len(layers))
    streamed = [layer.nbytes for layer, marked in zip(layers, marks, strict=True) if not marked]
    tiers = tuple(Tier.DEVICE if marked else Tier.DISK for marked in marks)
    return Placement(tiers, slots if streamed else 0, max(streamed, default=0))


def _with_host(tiers: tuple[Tier, ...], streamed: Sequence[int], count: int) -> tuple[Tier, ...]:
    marks = dict(zip(streamed, spread(count, len(streamed)), strict=True))
    return tuple(Tier.HOST if marks.get(index) else tier for index, tier in enumerate(tiers))
