"""What CUDA itself says of a GPU. This starts it, which takes seconds and some hundred megabytes of the GPU."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from scheduler.errors import MachineError
from scheduler.machine.machine import Machine, with_gpu
from scheduler.machine.nvml import GPUReading, read_gpu_of


def ask_cuda(index: int) -> GPUReading:
    """The device with a number. Raises MachineError with CUDA's reason where there is none."""
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
    """`machine` itself, or with another GPU where CUDA's device of that number is not the one that it was read from.

    NVML has the GPUs in another order, which CUDA's rules were guessed for.
    """
    uuid = _uuid(machine.index)
    if machine.uuid is None or uuid is None or _bare(machine.uuid) == _bare(uuid):
        return machine
    seen, named = ask_cuda(machine.index), read_gpu_of(uuid)
    if named is not None and named.total == seen.total:  # of a slice CUDA may give the UUID of the whole GPU
        seen = named
    return with_gpu(machine.without_gpu(), seen, machine.index, machine.pinned_limit)


def _uuid(index: int) -> str | None:
    """As NVML writes it; None where it is not told: whoever uses the device is told why it cannot be used."""
    try:
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    except (AssertionError, RuntimeError):
        return None
    return f"GPU-{uuid}" if uuid else None


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def current_device(device: torch.device) -> AbstractContextManager:
    """While open, events, streams, pinned memory and kernels of this thread are of that GPU; nothing on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
