"""What there is to plan with: one frozen record of device, memory and bandwidths, which tests can make up."""

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from loaders.decoding.toolchain import why_no_kernels
from scheduler.container import container_memory
from scheduler.errors import MachineError
from scheduler.nvml import GPUReading, read_gpu
from scheduler.sizes import MIB

DEVICES = ("auto", "cpu", "cuda")

# Windows lets Linux pin about half a gigabyte to a gigabyte; asking for more fails, and CUDA stays in error after it.
WSL_PINNED_BYTES = 512 * MIB


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes, bandwidths in bytes per second; None: not known.

    On `device` "cpu" the device is host memory: `device_total` and `device_free` repeat the host's figures.
    link_bandwidth: from pinned host memory to the device; pageable_bandwidth: from any other. pinned_limit: most bytes
    that can be pinned; None: no limit is known. flops: operations per second (2 for a product and its sum) of large
    matrix products in the dtype computed in. memory_bandwidth: of the device's own memory, as a product of one row has
    it. product_bandwidth: on a CPU the same for a few rows, whose products lay the weights out anew. attention_flops:
    operations per second of attention under a tree's mask. pass_seconds: what a pass takes however small its model:
    Python, masks and launching; layer_seconds: the same of a layer. estimated: names of fields that come from data
    sheets, not from measurements. no_kernels: why plain torch dequantizes on a GPU; None where fused kernels do.
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
    pageable_bandwidth: float | None = None
    pinned_limit: int | None = None
    flops: float | None = None
    memory_bandwidth: float | None = None
    product_bandwidth: float | None = None
    attention_flops: float | None = None
    pass_seconds: float | None = None
    layer_seconds: float | None = None
    estimated: tuple[str, ...] = ()
    driver: str | None = None
    pcie: str | None = None
    uuid: str | None = None
    no_kernels: str | None = None

    def without_gpu(self) -> "Machine":
        """The same machine with its processor as the device, of whose speed nothing is known."""
        total, available = self.host_total, self.host_available
        return Machine("cpu", "CPU", total, available, total, available, self.cores, disk_bandwidth=self.disk_bandwidth)


def read_machine(device: str = "auto", root: Path = Path("/")) -> Machine:
    """Ask the system and the NVIDIA driver (NVML) what is there; nothing is measured and CUDA is not started.

    "auto" takes the GPU if there is one; what its link and slot should do is estimated. `root` is where /proc is looked
    for. Raises MachineError for "cuda" where NVML sees no usable GPU, ValueError for a name that is none of `DEVICES`.
    """
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is none of {', '.join(DEVICES)}; CUDA_VISIBLE_DEVICES chooses among GPUs")
    total, available = _host_memory()
    cpu = Machine("cpu", _cpu_name(), total, available, total, available, _cores())
    if device == "cpu":
        return cpu
    try:
        return _with_gpu(cpu, read_gpu(), root)
    except MachineError:
        if device == "cuda":
            raise
        return cpu


def _with_gpu(cpu: Machine, gpu: GPUReading, root: Path) -> Machine:
    nominal = gpu.pcie.bandwidth if gpu.pcie else None
    return replace(
        cpu,
        device="cuda",
        device_name=gpu.name,
        device_total=gpu.total,
        device_free=gpu.free,
        link_bandwidth=nominal,
        pinned_limit=WSL_PINNED_BYTES if _is_wsl(root) else None,
        estimated=("link_bandwidth",) if nominal else (),
        driver=gpu.driver,
        pcie=str(gpu.pcie) if gpu.pcie else None,
        uuid=gpu.uuid,
        no_kernels=why_no_kernels(),
    )


def _is_wsl(root: Path) -> bool:
    """Whether this is Linux under Windows, whose kernel says so."""
    try:
        return "microsoft" in (root / "proc/version").read_text().lower()
    except OSError:
        return False


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
