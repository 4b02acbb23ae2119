"""What there is to plan with: one frozen record of device, memory and bandwidths, which tests can make up."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from scheduler.container import container_memory
from scheduler.errors import MachineError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes, bandwidths in bytes per second (None: not measured).

    On `device` "cpu" the device is host memory: `device_total` and `device_free` repeat the host's figures.
    """

    device: str
    device_name: str
    device_total: int
    device_free: int
    host_total: int
    host_available: int
    cores: int
    link_bandwidth: float | None = None
    disk_bandwidth: float | None = None

    def without_gpu(self) -> "Machine":
        """The same machine with its processor as the device."""
        total, available = self.host_total, self.host_available
        return replace(self, device="cpu", device_name="CPU", device_total=total, device_free=available)


def read_machine(device: str = "auto") -> Machine:
    """Ask the system and the NVIDIA driver (NVML) what is there; nothing is measured and CUDA is not started.

    "auto" takes the GPU if there is one. Raises MachineError for "cuda" where NVML sees no usable GPU, ValueError for
    a name that is none of `DEVICES`.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is none of {', '.join(DEVICES)}; CUDA_VISIBLE_DEVICES chooses among GPUs")
    total, available = _host_memory()
    name, device_total, device_free = _cpu_name(), total, available
    if device != "cpu":
        try:
            name, device_total, device_free = _read_gpu()
            device = "cuda"
        except MachineError:
            if device == "cuda":
                raise
            device = "cpu"
    return Machine(device, name, device_total, device_free, total, available, _cores())


def _host_memory() -> tuple[int, int]:
    """(total, available) bytes of host memory, within the container's limit if there is one."""
    host = psutil.virtual_memory()
    limit, left = container_memory() or (host.total, host.available)
    return min(host.total, limit), min(host.available, left)


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    """The processor's name as /proc/cpuinfo has it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "CPU"


def _read_gpu() -> tuple[str, int, int]:
    """(name, total, free) of the first GPU CUDA would show this process. Raises MachineError where there is none."""
    with _nvml() as nvml:
        handle = _visible_gpu(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
        return _text(name), int(memory.total), int(memory.free)


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
        raise MachineError(
            f"no NVIDIA GPU found (driver says: {error}); --device cpu runs without, --device auto decides"
        ) from error


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
        raise MachineError(f"no NVIDIA GPU to use: the driver lists {len(handles)}{hidden}; --device cpu runs without")
    return chosen[0]


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
