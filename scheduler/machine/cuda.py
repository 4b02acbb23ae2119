"""GPU properties from CUDA itself. Starting CUDA takes seconds and some hundred megabytes of GPU memory."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from scheduler.errors import MachineError
from scheduler.machine.machine import Machine, with_gpu
from scheduler.machine.nvml import GPUReading, read_gpu_of


def ask_cuda(index: int) -> GPUReading:
    """The GPU with CUDA's number `index`. Raises MachineError with CUDA's reason if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise MachineError(f"PyTorch {torch.__version__} cannot use a GPU: {reason}") from error
    capability = 10 * properties.major + properties.minor
    return GPUReading(properties.name, total, free, _uuid(index), None, None, capability)


def as_cuda_numbers(machine: Machine) -> Machine:
    """`machine`; if CUDA gives its number to another GPU, `machine` with that GPU.

    NVML lists the GPUs in an order of its own, and CUDA's order can only be guessed from it.
    """
    uuid = _uuid(machine.index)
    if machine.uuid is None or uuid is None or _bare(machine.uuid) == _bare(uuid):
        return machine
    seen, named = ask_cuda(machine.index), read_gpu_of(uuid)
    if named is not None and named.total == seen.total:  # for a MIG slice CUDA may report the whole GPU's UUID
        seen = named
    return with_gpu(machine.without_gpu(), seen, machine.index, machine.pinned_limit)


def _uuid(index: int) -> str | None:
    """The UUID as NVML writes it; None if CUDA cannot tell (using the device then raises the reason)."""
    try:
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    except (AssertionError, RuntimeError):
        return None
    return f"GPU-{uuid}" if uuid else None


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def current_device(device: torch.device) -> AbstractContextManager:
    """A context in which this thread's events, streams, pinned memory and kernels use that GPU; no effect on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
