"""Data sheets of common GPUs, to plan for a GPU that is not here or has not been measured yet."""

import difflib
import re
from dataclasses import dataclass, replace

from loaders.sizes import MIB
from scheduler.machine.machine import Machine
from scheduler.machine.pcie import PCIe

# The share of a data sheet's figures that large passes reach: a cautious estimate until measured.
FLOPS_SHARE = 0.7
# Masked attention uses the memory-efficient kernel, which reaches less than half of that: assumed, not measured.
ATTENTION_SHARE = 0.3
MEMORY_SHARE = 0.85


_PCIE_4 = PCIe(4, 16)


@dataclass(frozen=True)
class GPU:
    """A data sheet. mebibytes: memory, as the driver counts it. tera_flops: dense 16-bit matrix products with 32-bit
    accumulation, 10^12 operations per second. gigabytes_per_second: memory bandwidth, in 10^9 bytes. capability: 89
    for compute capability 8.9."""

    name: str
    mebibytes: int
    tera_flops: float
    gigabytes_per_second: float
    capability: int
    pcie: PCIe = _PCIE_4

    @property
    def key(self) -> str:
        """The name as users write it: rtx-4090."""
        return self.name.lower().replace(" ", "-")


# NVIDIA's data sheets and architecture whitepapers (Turing to Blackwell); memory as nvidia-smi lists it.
GPUS = (
    GPU("T4", 15360, 65.0, 320, 75, PCIe(3, 16)),
    GPU("RTX 2080 Ti", 11264, 53.8, 616, 75, PCIe(3, 16)),
    GPU("A10", 23028, 125.0, 600, 86),
    GPU("A100 40GB", 40960, 312.0, 1555, 80),
    GPU("A100 80GB", 81920, 312.0, 1935, 80),
    GPU("A4000", 16376, 76.7, 448, 86),
    GPU("A5000", 24564, 111.1, 768, 86),
    GPU("A6000", 49140, 154.8, 768, 86),
    GPU("RTX 3060", 12288, 25.6, 360, 86),
    GPU("RTX 3080", 10240, 59.5, 760, 86),
    GPU("RTX 3080 Ti", 12288, 68.2, 912, 86),
    GPU("RTX 3090", 24576, 71.0, 936, 86),
    GPU("RTX 3090 Ti", 24564, 80.0, 1008, 86),
    GPU("L4", 23034, 121.0, 300, 89),
    GPU("L40", 46068, 181.0, 864, 89),
    GPU("L40S", 46068, 362.0, 864, 89),
    GPU("RTX 6000 Ada", 49140, 364.2, 960, 89),
    GPU("RTX 4060 Ti 16GB", 16380, 44.1, 288, 89, PCIe(4, 8)),
    GPU("RTX 4070", 12282, 58.3, 504, 89),
    GPU("RTX 4070 Ti", 12282, 80.2, 504, 89),
    GPU("RTX 4070 Ti Super", 16376, 88.2, 672, 89),
    GPU("RTX 4080", 16376, 97.5, 717, 89),
    GPU("RTX 4080 Super", 16376, 104.4, 736, 89),
    GPU("RTX 4090", 24564, 165.2, 1008, 89),
    GPU("H100 PCIe", 81559, 756.0, 2039, 90, PCIe(5, 16)),
    GPU("H100", 81559, 989.0, 3352, 90, PCIe(5, 16)),
    GPU("H200", 143771, 989.0, 4800, 90, PCIe(5, 16)),
    GPU("RTX 5070", 12227, 61.7, 672, 120, PCIe(5, 16)),
    GPU("RTX 5070 Ti", 16303, 87.9, 896, 120, PCIe(5, 16)),
    GPU("RTX 5080", 16303, 112.6, 960, 120, PCIe(5, 16)),
    GPU("RTX 5090", 32607, 209.5, 1792, 120, PCIe(5, 16)),
)
# Pascal and Volta: PyTorch's builds for CUDA 12.8 and later have no kernels for them.
_UNSERVED = re.compile(r"(tesla)?(v100|p100|p40|p4|titan(v|xp?)|(gtx)?(9[5-8]0|10[3-8]0)(ti)?)((16|32)gb)?")
_BY_KEY = {gpu.key: gpu for gpu in GPUS}
_BY_LETTERS = {key.replace("-", ""): gpu for key, gpu in _BY_KEY.items()}


def known_gpu(name: str) -> GPU:
    """The data sheet of the GPU `name`; case, spaces and hyphens do not matter.

    Raises ValueError with the closest known names.
    """
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    letters = key.replace("-", "")
    if gpu := _BY_LETTERS.get(letters):
        return gpu
    if _UNSERVED.fullmatch(letters):
        raise ValueError(
            f"{name} is too old: PyTorch's builds for CUDA 12.8 and later serve Turing (7.5) and newer GPUs"
        )
    near = difflib.get_close_matches(key, _BY_KEY, n=3, cutoff=0.5)
    raise ValueError(
        f"no GPU is known as {name!r}: "
        + (f"perhaps {' or '.join(near)}" if near else f"the known ones are {', '.join(_BY_KEY)}")
    )


def recognised(device_name: str) -> GPU | None:
    """The data sheet for a driver's name such as "NVIDIA GeForce RTX 4090"; None if the GPU is not known."""
    words = set(re.split(r"[\s-]+", device_name.lower()))
    fitting = [gpu for gpu in GPUS if set(gpu.name.lower().split()) <= words]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


def with_data_sheet(machine: Machine, gpu: GPU) -> Machine:
    """`machine` with speeds from the data sheet where none are known yet."""
    figures = {
        "flops": gpu.tera_flops * 1e12 * FLOPS_SHARE,
        "attention_flops": gpu.tera_flops * 1e12 * ATTENTION_SHARE,
        "memory_bandwidth": gpu.gigabytes_per_second * 1e9 * MEMORY_SHARE,
    }
    new = {name: value for name, value in figures.items() if getattr(machine, name) is None}
    return replace(machine, **new, estimated=tuple(sorted({*machine.estimated, *new})))  # type: ignore[arg-type]


def planned_machine(name: str, here: Machine, host_memory: int | None = None) -> Machine:
    """The machine `here` with the named GPU, idle, in place of its own, and `host_memory` bytes free (None: as here).

    Raises ValueError if the GPU is not known.
    """
    gpu = known_gpu(name)
    planned = Machine(
        device="cuda",
        device_name=gpu.name,
        device_total=gpu.mebibytes * MIB,
        device_free=gpu.mebibytes * MIB,
        host_total=host_memory or here.host_total,
        host_available=host_memory or here.host_total,
        cores=here.cores,
        link_bandwidth=gpu.pcie.bandwidth,
        disk_bandwidth=here.disk_bandwidth,
        estimated=("link_bandwidth",),
        pcie=str(gpu.pcie),
        capability=gpu.capability,
    )
    return with_data_sheet(planned, gpu)
