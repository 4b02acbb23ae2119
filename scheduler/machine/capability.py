"""Which builds of PyTorch have kernels for a GPU, by its compute capability. Imports no torch."""

import re
from collections.abc import Iterable

from scheduler.errors import MachineError
from scheduler.machine.machine import Machine
from scheduler.machine.torch_build import TorchBuild

TURING = 75
# Since PyTorch 2.11, builds for CUDA 12.8 and later have no kernels for GPUs older than Turing; builds for CUDA 12.6
# still have them (github.com/pytorch/pytorch/issues/172352).
WITHOUT_OLDER = (12, 8)
_ARCHITECTURE = re.compile(r"(sm|compute)_([0-9]+)([af]?)")


def check_build(machine: Machine, build: TorchBuild) -> None:
    """Raise MachineError if the installed build has no kernels for the GPU; torch is not imported."""
    if machine.capability is None or machine.capability >= TURING or build.cuda is None:
        return
    if tuple(int(part) for part in build.cuda.split(".")[:2]) >= WITHOUT_OLDER:
        raise _unserved(machine, build.version, "7.5 and later")


def check_kernels(machine: Machine, torch_version: str, architectures: Iterable[str]) -> None:
    """Raise MachineError if no entry of `torch.cuda.get_arch_list()` serves the GPU; an empty list is ignored."""
    names = tuple(architectures)
    if machine.capability is None or not names or any(_serves(name, machine.capability) for name in names):
        return
    raise _unserved(machine, torch_version, ", ".join(names))


def _serves(architecture: str, capability: int) -> bool:
    """sm_86 runs on 8.6 and 8.9; compute_120 is compiled for 12.0 and everything later; sm_90a runs on 9.0 only."""
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        return False
    kind, number, suffix = found[1], int(found[2]), found[3]
    if suffix == "a":
        return number == capability
    same_generation = number // 10 == capability // 10
    return number <= capability and (same_generation or (kind == "compute" and not suffix))


def _unserved(machine: Machine, torch_version: str, served: str) -> MachineError:
    capability = f"{(machine.capability or 0) / 10:.1f}"
    return MachineError(
        f"PyTorch {torch_version} has no kernels for {machine.device_name} (compute capability {capability}), only for "
        f"{served}.\n  --device cpu   runs without; PyTorch's builds for CUDA 12.6 serve cards back to 5.0"
    )
