"""One frozen record of device, memory and bandwidths to plan with; tests can construct their own."""

import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from loaders.dequantize.toolchain import why_no_kernels
from loaders.sizes import MIB
from scheduler.errors import DriverError, MachineError
from scheduler.machine.container import container_memory
from scheduler.machine.nvml import GPUReading, read_gpu

DEVICES = ("auto", "cpu", "cuda")
_NUMBERED = re.compile(r"cuda:([0-9]{1,3})")

# WSL2 can pin about half a gigabyte to a gigabyte. Asking for more fails and leaves CUDA in an error state.
WSL_PINNED_BYTES = 512 * MIB


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes, bandwidths in bytes per second; None: not known.

    On `device` "cpu" the device is host memory: `device_total` and `device_free` repeat the host's figures.
    link_bandwidth: from pinned host memory to the device; pageable_bandwidth: from any other. pinned_limit: most bytes
    that can be pinned; None: no limit is known. flops: operations per second (a multiply-add counts as 2) of large
    matrix products in the compute dtype. memory_bandwidth: of the device's own memory, as a matrix-vector product sees
    it. product_bandwidth: on a CPU the same for products of a few rows, which repack the weights. attention_flops:
    operations per second of attention under a tree's mask. pass_seconds: the fixed cost of a pass whatever the model's
    size (Python, masks, launches); layer_seconds: the same per layer. estimated: names of fields that come from data
    sheets, not from measurements. no_kernels: why plain torch dequantizes on a GPU; None if fused kernels do.
    capability: of a GPU, 75 for 7.5. index: CUDA's number of the device. note: a line for the user if the device is
    not the expected one.
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
    capability: int | None = None
    index: int = 0
    note: str | None = None

    @property
    def has_bfloat16(self) -> bool:
        """Whether the device computes in bfloat16: GPUs do since Ampere."""
        return self.capability is None or self.capability >= 80

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device: "cpu", "cuda:0"."""
        return f"{self.device}:{self.index}" if self.device == "cuda" else self.device

    def without_gpu(self) -> "Machine":
        """The same machine with its CPU, of unknown speed, as the device."""
        total, available = self.host_total, self.host_available
        return Machine("cpu", "CPU", total, available, total, available, self.cores, disk_bandwidth=self.disk_bandwidth)


def read_machine(device: str = "auto", root: Path = Path("/")) -> Machine:
    """Ask the system and the NVIDIA driver (NVML) what is there; nothing is measured and CUDA is not started.

    "auto" takes the first GPU if there is one, "cuda:1" the second. The link's bandwidth is estimated from its slot.
    If there is a card but NVML does not answer, CUDA is started and asked instead. `root`: where /proc and /dev are.
    Raises MachineError if the GPU does not exist, and for "auto" if there is one that cannot be used; ValueError if
    the name is none of `DEVICES`.
    """
    index = device_index(device)
    total, available = _host_memory()
    cpu = Machine("cpu", _cpu_name(), total, available, total, available, _cores())
    if device == "cpu":
        return cpu
    limit = WSL_PINNED_BYTES if _is_wsl(root) else None
    try:
        return with_gpu(cpu, read_gpu(index), index, limit)
    except DriverError as error:
        if has_nvidia_card(root):
            return _asked_of_cuda(cpu, index, limit, error)
        if device != "auto":
            raise
    except MachineError:
        if device != "auto":
            raise
    return cpu


def device_index(device: str) -> int:
    """1 for "cuda:1", 0 for the names in `DEVICES`. Raises ValueError for other names."""
    numbered = _NUMBERED.fullmatch(device)
    if device not in DEVICES and not numbered:
        raise ValueError(f"device {device!r} is none of {', '.join(DEVICES)}, or cuda:1 for the second GPU")
    return int(numbered[1]) if numbered else 0


def with_gpu(cpu: Machine, gpu: GPUReading, index: int, pinned_limit: int | None) -> Machine:
    """The machine `cpu` with that GPU as its device."""
    nominal = gpu.pcie.bandwidth if gpu.pcie else None
    return replace(
        cpu,
        device="cuda",
        device_name=gpu.name,
        device_total=gpu.total,
        device_free=gpu.free,
        link_bandwidth=nominal,
        pinned_limit=pinned_limit,
        estimated=("link_bandwidth",) if nominal else (),
        driver=gpu.driver,
        pcie=str(gpu.pcie) if gpu.pcie else None,
        uuid=gpu.uuid,
        no_kernels=why_no_kernels(),
        capability=gpu.capability,
        index=index,
    )


def _asked_of_cuda(cpu: Machine, index: int, pinned_limit: int | None, reason: DriverError) -> Machine:
    """Of a machine whose card is here, though NVML does not answer: as in containers without it, after updates."""
    try:
        from scheduler.machine.cuda import ask_cuda

        gpu = ask_cuda(index)
    except (ImportError, MachineError) as error:
        raise MachineError(
            f"an NVIDIA card is here, but it cannot be used: {reason}; {error}.\n"
            "  nvidia-smi   must list it: restart after an update of the driver; start a container with --gpus all"
        ) from error
    return replace(with_gpu(cpu, gpu, index, pinned_limit), note=f"CUDA itself was asked for the GPU, since {reason}.")


def has_nvidia_card(root: Path = Path("/")) -> bool:
    """Whether the kernel has an NVIDIA card, and the user does not hide all of them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1")
    signs = (
        root.glob(sign) for sign in ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "usr/lib/wsl/lib/libcuda.so*")
    )
    return not hidden and any(next(sign, None) for sign in signs)


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
