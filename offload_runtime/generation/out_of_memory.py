"""What to do when the GPU has less memory than the plan counted on."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from loaders.sizes import format_cap, format_size
from offload_runtime.errors import DoesNotFitError
from offload_runtime.planning.planning import Preparation
from scheduler.plan.plan import Plan
from scheduler.streaming.device_memory import release_cached

SMALLER_SHARE = 0.9
# PyTorch's allocator has its own exception. All other calls to the driver report it in the message alone: starting CUDA
# and loading kernels (AcceleratorError, "CUDA driver error"), a library's workspace or handle, a Triton launch.
_IN_TEXT = re.compile(
    r"CUDA (driver )?error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|CU[A-Z]+_STATUS_ALLOC_FAILED|Triton Error \[CUDA\]: out of memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the GPU is out of memory, in any of CUDA's forms."""
    in_text = isinstance(error, RuntimeError) and _IN_TEXT.search(str(error)) is not None
    return in_text or isinstance(error, torch.OutOfMemoryError)


@contextmanager
def out_of_memory_recognised() -> Iterator[None]:
    """Turn every exception that means "out of memory" into torch.OutOfMemoryError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def smaller_cap(plan: Plan) -> int:
    """Bytes of device memory to try next."""
    return int(plan.device_bytes * SMALLER_SHARE)


def tightened(preparation: Preparation, plan: Plan) -> Preparation:
    """The same with a tenth less device memory than `plan` takes. Raises DoesNotFitError if that is too little."""
    return preparation.replanned(limits=replace(preparation.limits, device_memory=smaller_cap(plan)))


def free_unused_memory() -> None:
    """Return unreferenced memory to the device; PyTorch would keep freed blocks."""
    gc.collect()
    release_cached()


@contextmanager
def out_of_memory_explained(plan: Plan) -> Iterator[None]:
    """Turn an out-of-memory error into DoesNotFitError with a cap to try."""
    try:
        with out_of_memory_recognised():
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
