"""How much host memory is kept for moving weights, beside the weights themselves; in bytes. Needs no torch."""

from collections.abc import Sequence

from loaders.spec import UnitSpec
from scheduler.sizes import MIB

# Pageable memory crosses the link by way of these: large enough for a copy to run at the link's full speed, and enough
# of them that the host and the link each have one while the others wait.
BOUNCE_CHUNK_BYTES = 16 * MIB
BOUNCE_CHUNKS = 4
BOUNCE_BYTES = BOUNCE_CHUNKS * BOUNCE_CHUNK_BYTES
# What is read from disk to be sent to a GPU is staged in spans: eight threads read 4 MiB each.
SPAN_BYTES = 32 * MIB
# While units are loaded to a GPU, one span is read or sent per thread, and reads are in flight throughout.
LOADING_THREADS = 2
# Largest units that fit into what the disk tier is read ahead into, beside a GPU.
STAGING_BUFFERS = 2


def staging_bytes(units: Sequence[int]) -> int:
    """What the disk tier is read ahead into, whole spans, for units of the given sizes on disk."""
    return -(-STAGING_BUFFERS * max(units, default=0) // SPAN_BYTES) * SPAN_BYTES
