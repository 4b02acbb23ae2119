"""What the NVIDIA driver says (NVML): which GPU CUDA would use, its memory and its slot. CUDA is not started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from scheduler.errors import MachineError
from scheduler.pcie import PCIe


@dataclass(frozen=True)
class GPUReading:
    """What the driver says of one GPU; memory in bytes. pcie: the best its slot and the card agree on."""

    name: str
    total: int
    free: int
    uuid: str
    driver: str
    pcie: PCIe | None


def read_gpu() -> GPUReading:
    """The first GPU CUDA would show this process. Raises MachineError where there is none."""
    with _nvml() as nvml:
        handle = _visible_gpu(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return GPUReading(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            total=int(memory.total),
            free=int(memory.free),
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            pcie=_slot(nvml, handle),
        )


def _slot(nvml: ModuleType, handle: Any) -> PCIe | None:
    """The most, not the current: an idle card turns its link down. None where the driver cannot tell, as for slices."""
    try:
        return PCIe(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    except nvml.NVMLError:
        return None


@contextmanager
def _nvml() -> Iterator[ModuleType]:
    """NVML, started for the block. Whatever it cannot answer becomes a MachineError with its reason."""
    try:
        import pynvml
    except ImportError:
        raise MachineError("no GPU can be looked for: the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise MachineError(f"no NVIDIA GPU found (driver says: {error})") from error


def _visible_gpu(nvml: ModuleType, visible: str | None) -> Any:
    """The NVML handle of CUDA's device 0. NVML ignores CUDA_VISIBLE_DEVICES, so its rules are applied here.

    An entry is an index in CUDA's order, or a UUID that may be cut short; an entry that names nothing hides itself
    and all that follow, so only the first one counts.
    """
    handles = _cuda_order(nvml)
    entry = "0" if visible is None else visible.split(",")[0].strip()
    if entry.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    if entry.isdigit():
        chosen = handles[int(entry) : int(entry) + 1]
    else:
        chosen = [handle for handle in handles if entry and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(entry)]
    if len(chosen) != 1:
        hidden = "" if visible is None else f", and CUDA_VISIBLE_DEVICES={visible!r} shows none of them"
        raise MachineError(f"no NVIDIA GPU to use: the driver lists {len(handles)}{hidden}")
    return _first_slice(nvml, chosen[0])


def _first_slice(nvml: ModuleType, gpu: Any) -> Any:
    """The GPU itself, or its first slice (MIG) where it is cut into some: CUDA then shows that one and no more."""
    try:
        enabled, _ = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError:
        return gpu  # most cannot be cut
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if enabled else 0):
        try:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except nvml.NVMLError:
            continue  # a place that no slice takes
    return gpu


def _cuda_order(nvml: ModuleType) -> list[Any]:
    """All handles in CUDA's order: fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID, which is NVML's own order.

    CUDA does not say how it ranks; cores x clock puts a display card behind the card people mean.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if len(handles) < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return handles

    def slowness(handle: Any) -> int:
        return -nvml.nvmlDeviceGetNumGpuCores(handle) * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)

    return sorted(handles, key=slowness)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
