"""What to do when the GPU has less memory than the plan counted on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from offload_runtime.errors import DoesNotFitError
from offload_runtime.planning import Preparation
from scheduler.plan import Plan
from scheduler.sizes import format_cap, format_size

SMALLER_SHARE = 0.9


def smaller_cap(plan: Plan) -> int:
    """Bytes of device memory to try next."""
    return int(plan.device_bytes * SMALLER_SHARE)


def tightened(preparation: Preparation, plan: Plan) -> Preparation:
    """The same with a tenth less device memory than `plan` takes. Raises DoesNotFitError where that is too little."""
    return preparation.replanned(limits=replace(preparation.limits, device_memory=smaller_cap(plan)))


def free_unused_memory() -> None:
    """Give the device back what nothing refers to any more: PyTorch keeps freed blocks for itself."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def out_of_memory_explained(plan: Plan) -> Iterator[None]:
    """Turn CUDA's own error into DoesNotFitError with a cap to try. What was generated so far is kept."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        cap = f"--device-memory {format_cap(smaller_cap(plan))}"
        raise DoesNotFitError(
            f"{plan.device_name} ran out of memory: {format_size(plan.device_bytes)} are planned, and there is less. "
            f"Another program may have taken some since.\n  {cap}   plans with less",
            plan.device_bytes,
            plan.device_budget,
            (cap,),
        ) from error
