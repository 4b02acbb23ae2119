"""GPU facts from the NVIDIA driver (NVML): which GPU CUDA would use, its memory and its slot. CUDA is not started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from scheduler.errors import DriverError, MachineError
from scheduler.machine.pcie import PCIe


@dataclass(frozen=True)
class GPUReading:
    """One GPU as the driver reports it; memory in bytes. pcie: the best link that slot and card support. capability: 75
    for compute capability 7.5."""

    name: str
    total: int
    free: int
    uuid: str | None
    driver: str | None
    pcie: PCIe | None
    capability: int | None = None


def read_gpu(index: int = 0) -> GPUReading:
    """The GPU that CUDA is expected to show this process as number `index`.

    Raises MachineError if there is none, DriverError if the driver does not answer.
    """
    with _nvml() as nvml:
        gpus = _visible_gpus(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if index >= len(gpus):
            raise MachineError(f"there is no GPU {index}: {len(gpus)} can be used, the first of them as 0")
        return _reading(nvml, gpus[index])


def read_gpu_of(uuid: str) -> GPUReading | None:
    """The GPU or MIG slice with a UUID ("GPU-…", "MIG-…"); None if the driver does not know it or does not answer."""
    try:
        with _nvml() as nvml:
            return _reading(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except DriverError:
        return None


def _reading(nvml: ModuleType, handle: Any) -> GPUReading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GPUReading(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total=int(memory.total),
        free=int(memory.free),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        pcie=_slot(nvml, handle),
        capability=_capability(nvml, handle),
    )


def _slot(nvml: ModuleType, handle: Any) -> PCIe | None:
    """The maximum, not the current link: idle cards lower it. None if the driver cannot tell, as for MIG slices."""
    try:
        return PCIe(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    except nvml.NVMLError:
        return None


def _capability(nvml: ModuleType, handle: Any) -> int | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None
    return 10 * major + minor


@contextmanager
def _nvml() -> Iterator[ModuleType]:
    """NVML, started for the block. Its errors become a DriverError with the reason."""
    try:
        import pynvml
    except ImportError:
        raise DriverError("no GPU can be looked for: the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise DriverError(f"no NVIDIA GPU found (driver says: {error})") from error


def _visible_gpus(nvml: ModuleType, visible: str | None) -> list[Any]:
    """The NVML handles of CUDA's devices. NVML ignores CUDA_VISIBLE_DEVICES, so its rules are applied here.

    An entry is an index in CUDA's order, or a UUID or the beginning of one. An entry that names no GPU hides itself
    and all that follow. Of MIG slices CUDA shows only one. Raises MachineError if none is left.
    """
    handles = _cuda_order(nvml)
    entries = [str(index) for index in range(len(handles))] if visible is None else visible.split(",")
    shown: list[Any] = []
    for entry in map(str.strip, entries):
        handle = _slice_named(nvml, handles, entry) if entry.startswith("MIG-") else _gpu_named(nvml, handles, entry)
        if handle is None:
            break
        shown.append(handle if entry.startswith("MIG-") else _first_slice(nvml, handle))
    if not shown:
        hidden = "" if visible is None else f", and CUDA_VISIBLE_DEVICES={visible!r} shows none of them"
        raise MachineError(f"no NVIDIA GPU to use: the driver lists {len(handles)}{hidden}")
    return shown


def _gpu_named(nvml: ModuleType, handles: list[Any], entry: str) -> Any | None:
    """The one GPU that an entry names; None if there is none or several."""
    if entry.isdigit():
        return dict(enumerate(handles)).get(int(entry))
    chosen = [handle for handle in handles if entry and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(entry)]
    return chosen[0] if len(chosen) == 1 else None


def _slice_named(nvml: ModuleType, handles: list[Any], entry: str) -> Any | None:
    """The MIG slice with a UUID, or with the form before driver 470, "MIG-GPU-uuid/instance/compute instance"."""
    gpu, _, instances = entry.removeprefix("MIG-").partition("/")
    if instances and (whole := _gpu_named(nvml, handles, gpu)) is not None:
        return next((part for part in _slices(nvml, whole) if _instances(nvml, part) == instances), None)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    except nvml.NVMLError:
        return None


def _instances(nvml: ModuleType, part: Any) -> str:
    return f"{nvml.nvmlDeviceGetGpuInstanceId(part)}/{nvml.nvmlDeviceGetComputeInstanceId(part)}"


def _first_slice(nvml: ModuleType, gpu: Any) -> Any:
    """The GPU itself, or its first slice if it is partitioned (MIG): CUDA then shows only that one."""
    return next(_slices(nvml, gpu), gpu)


def _slices(nvml: ModuleType, gpu: Any) -> Iterator[Any]:
    try:
        enabled, _ = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError:
        return  # most GPUs cannot be partitioned
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu) if enabled else 0):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except nvml.NVMLError:
            continue  # no slice has this index


def _cuda_order(nvml: ModuleType) -> list[Any]:
    """All handles in CUDA's order: fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID, which is NVML's own order.

    CUDA does not document its ranking; cores x clock puts a display card behind the card that users mean.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if len(handles) < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return handles

    def slowness(handle: Any) -> int:
        return -nvml.nvmlDeviceGetNumGpuCores(handle) * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)

    return sorted(handles, key=slowness)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
