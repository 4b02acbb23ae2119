"""Which layer is in which tier: as many as fit on the device, spread evenly over the depth; the others stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from loaders.checkpoint.spec import LayerSpec
from loaders.sizes import MIB

# A layer takes about 1 ms of Python and kernel launches, in which a link of 25 GB/s moves 25 MB. Below twice that size,
# the jitter of one layer is as long as the copy of the next.
SMALL_UNIT_BYTES = 50 * MIB
# If the mean size is below this share of the largest, short copies can coincide with long computations.
UNEVEN_SHARE = 0.75


class Tier(str, Enum):
    """Where a layer is kept between its uses."""

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
    """Mark `count` of `total` indices so that neighbours are at most ceil(total / count) apart, also cyclically."""
    return [(index + 1) * count // total > index * count // total for index in range(total)]


def bytes_in(layers: Sequence[LayerSpec], tiers: Sequence[Tier], tier: Tier) -> int:
    """Bytes of the layers in `tier`, in compute dtype; on the device with the codes that lie beside them."""
    sizes = (layer.device_bytes if tier is Tier.DEVICE else layer.nbytes for layer in layers)
    return sum(nbytes for nbytes, its in zip(sizes, tiers, strict=True) if its is tier)


def host_bytes(layers: Sequence[LayerSpec], tiers: Sequence[Tier]) -> int:
    """Bytes of the host tier's buffers; layers with the same bytes on disk share one."""
    sizes = (
        (layer.stored_at or index, layer.nbytes) for index, layer in enumerate(layers) if tiers[index] is Tier.HOST
    )
    return sum(dict(sizes).values())


def device_bytes(layers: Sequence[LayerSpec], placement: Placement, copies: Sequence[int] = ()) -> int:
    """Bytes of resident layers, ring slots, and the copies of streamed layers."""
    resident = bytes_in(layers, placement.tiers, Tier.DEVICE)
    return resident + placement.slots * placement.slot_bytes + copied_bytes(placement.tiers, copies)


def copied_bytes(tiers: Sequence[Tier], copies: Sequence[int]) -> int:
    """Bytes of the low-bit copies of streamed layers. copies: of each layer's; none if the target has no copy."""
    return sum(nbytes for nbytes, tier in zip(copies, tiers) if tier is not Tier.DEVICE)


def wanted_slots(layers: Sequence[LayerSpec]) -> int:
    """Two slots, or three if layers are small or differ in size.

    One slot is filled while the other is computed on. A copy takes longer than the computation it hides, so two slots
    keep the link busy, and a third saves no more link time than the same bytes resident would, however long drafting
    takes: those save it without a pause, too. Of ten layers from disk on a CPU, after pauses of 0.5 s, passes took 0.80
    and 0.84 times as long with four slots, 0.90 and 0.88 with two slots and two resident layers, within each other's
    quartiles; without a pause 1.03 and 0.82. A third pays only if a short copy can end before a long computation
    (layers that differ) or if jitter matters (small layers).
    """
    largest = max(layer.nbytes for layer in layers)
    uneven = sum(layer.nbytes for layer in layers) < UNEVEN_SHARE * largest * len(layers)
    return 3 if uneven or largest < SMALL_UNIT_BYTES else 2


def place_on_device(layers: Sequence[LayerSpec], room: int, copies: Sequence[int] = ()) -> Placement:
    """Place layers in `room` bytes of the device and the others on DISK; the smallest ring if nothing fits.

    Takes the placement with the most resident bytes that fits: more room then never streams more, even if layers differ
    in size. copies: bytes that each layer takes on the device while it streams, beside the ring.
    """
    wanted, smallest = wanted_slots(layers), _placement(layers, 0, 2)
    if room < min(device_bytes(layers, smallest, copies), sum(layer.device_bytes for layer in layers)):
        return smallest
    fitting = [one for one in _candidates(tuple(layers), wanted, tuple(copies)) if one[1] <= room]
    return max(fitting, key=lambda one: one[2])[0] if fitting else smallest


def place_on_host(
    layers: Sequence[LayerSpec],
    placement: Placement,
    room: int,
    staging: Callable[[Sequence[LayerSpec], Sequence[Tier]], int],
) -> Placement:
    """Move streamed layers from DISK to HOST, evenly, as many bytes as `room` holds.

    staging: gives the bytes of the staging buffers for the layers left on DISK.
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


@lru_cache(maxsize=8)  # a plan compares trees of many sizes, which leave different room for the same layers
def _candidates(layers: tuple[LayerSpec, ...], slots: int, copies: tuple[int, ...]) -> list[tuple[Placement, int, int]]:
    """(placement, bytes on the device, resident bytes) for every number of resident layers, the most first."""
    placements = [_placement(layers, resident, slots) for resident in range(len(layers), -1, -1)]
    return [(one, device_bytes(layers, one, copies), bytes_in(layers, one.tiers, Tier.DEVICE)) for one in placements]


def _placement(layers: Sequence[LayerSpec], resident: int, slots: int) -> Placement:
    marks = spread(resident, len(layers))
    streamed = [layer.nbytes for layer, marked in zip(layers, marks, strict=True) if not marked]
    tiers = tuple(Tier.DEVICE if marked else Tier.DISK for marked in marks)
    return Placement(tiers, slots if streamed else 0, max(streamed, default=0))


def _with_host(tiers: tuple[Tier, ...], streamed: Sequence[int], count: int) -> tuple[Tier, ...]:
    marks = dict(zip(streamed, spread(count, len(streamed)), strict=True))
    return tuple(Tier.HOST if marks.get(index) else tier for index, tier in enumerate(tiers))
