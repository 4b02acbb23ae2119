"""What to say when the GPU has less memory than the plan counted on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offload_runtime.errors import DoesNotFitError
from scheduler.plan import Plan
from scheduler.sizes import format_cap, format_size

SMALLER_SHARE = 0.9


@contextmanager
def out_of_memory_explained(plan: Plan) -> Iterator[None]:
    """Turn CUDA's own error into DoesNotFitError with a cap to try. What was generated so far is kept."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        cap = f"--device-memory {format_cap(int(plan.device_bytes * SMALLER_SHARE))}"
        raise DoesNotFitError(
            f"{plan.device_name} ran out of memory: {format_size(plan.device_bytes)} are planned, and there is less. "
            f"Another program may have taken some since.\n  {cap}   plans with less",
            plan.device_bytes,
            plan.device_budget,
            (cap,),
        ) from error
