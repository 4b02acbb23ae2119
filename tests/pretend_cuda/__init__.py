"""A CUDA that only pretends, for tests of the GPU's path where there is none.

    with pretend_cuda() as cuda, OffloadRuntime.from_pretrained(model, device="cuda", dtype="float32") as runtime:
        with cuda.counting() as counts:
            runtime.generate(prompt)
    counts.launches, counts.uploads, counts.waits, counts.replays, counts.captures, counts.allocated

At the end of the block PretendFault is raised if two streams raced, a capture failed, a graph used memory that was
freed, or pinned memory was given back too early.
"""

from tests.pretend_cuda.counts import Counts
from tests.pretend_cuda.device import PretendCuda, pretend_cuda
from tests.pretend_cuda.streams import PretendFault

__all__ = ["Counts", "PretendCuda", "PretendFault", "pretend_cuda"]
