"""Host memory for moving weights, beside the weights themselves, and how much of both can be pinned. Needs no torch.

If little can be pinned (WSL2), it goes, in this order, to the chunks through which pageable memory is copied, to the
staging buffers for reads from disk, and to each layer of the host tier that still fits.
"""

from collections.abc import Iterable, Sequence

from loaders.checkpoint.spec import LayerSpec, ModelSpec, aligned
from loaders.io.direct import round_up
from loaders.sizes import MIB
from scheduler.plan.placement import Tier

# Layers are copied to a GPU in pieces, large enough for the link's full speed. So few are in flight that other uploads,
# which queue behind them, wait only one or two milliseconds.
PIECE_BYTES = 16 * MIB
PIECES_IN_FLIGHT = 2
# The host writes to one chunk while the others are in flight.
BOUNCE_CHUNK_BYTES = PIECE_BYTES
BOUNCE_CHUNKS = PIECES_IN_FLIGHT + 1
BOUNCE_BYTES = BOUNCE_CHUNKS * BOUNCE_CHUNK_BYTES
# Bytes read from disk for a GPU are staged in spans: eight threads read 4 MiB each.
SPAN_BYTES = 32 * MIB
# While layers are loaded to a GPU, each thread reads or sends a span of its own, so that the disk is always busy.
LOADING_THREADS = 2
# Beside a GPU, the disk tier is read ahead into staging memory of this many times its largest layer.
STAGING_BUFFERS = 2


def staging_buffers(loaded: Iterable[int], from_disk: Iterable[int]) -> tuple[int, int]:
    """(bytes, number) of the staging buffers beside a GPU, for layers of the given sizes on the device and on disk."""
    largest, largest_from_disk = max(loaded, default=0), max(from_disk, default=0)
    if not largest and not largest_from_disk:
        return 0, 0
    span_bytes = aligned(min(SPAN_BYTES, max(largest, largest_from_disk)))
    return span_bytes, max(LOADING_THREADS, -(-STAGING_BUFFERS * largest_from_disk // span_bytes))


def disk_staging_bytes(layers: Sequence[LayerSpec], tiers: Sequence[Tier]) -> int:
    """Bytes of staging memory for the disk tier, beside a GPU; 0 without a disk tier."""
    from_disk = [layer.nbytes for layer, tier in zip(layers, tiers, strict=True) if tier is Tier.DISK]
    return STAGING_BUFFERS * max(from_disk, default=0)


def pageable_layers(spec: ModelSpec, tiers: Sequence[Tier], limit: int | None) -> frozenset[int]:
    """The layers of the host tier that stay pageable if `limit` bytes can be pinned; None: no limit."""
    if limit is None:
        return frozenset()
    sizes = {tier: [layer.nbytes for layer, its in zip(spec.layers, tiers) if its is tier] for tier in Tier}
    span_bytes, count = staging_buffers((*sizes[Tier.DEVICE], spec.embeddings_and_head_bytes), sizes[Tier.DISK])
    room = limit
    for nbytes in [BOUNCE_CHUNK_BYTES] * BOUNCE_CHUNKS + [span_bytes] * count:
        room -= nbytes if nbytes <= room else 0
    pinned: dict[object, bool] = {}
    for index, layer in enumerate(spec.layers):
        key = layer.stored_at or index
        if tiers[index] is Tier.HOST and key not in pinned:
            pinned[key] = round_up(layer.nbytes) <= room
            room -= round_up(layer.nbytes) if pinned[key] else 0
    return frozenset(
        index
        for index, layer in enumerate(spec.layers)
        if tiers[index] is Tier.HOST and not pinned[layer.stored_at or index]
    )
