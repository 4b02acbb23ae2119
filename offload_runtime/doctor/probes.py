"""The doctor's probes, each returning one record of JSON types. Sizes in bytes, speeds in bytes per second.

A probe that fails raises its error. None needs a model; what needs a GPU is skipped without one.
"""

import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loaders.dequantize.toolchain import why_no_kernels
from loaders.io.direct import measure_read_bandwidth
from loaders.sizes import GIB, MIB
from scheduler.machine.container import container_memory
from scheduler.machine.machine import Machine, has_nvidia_card, read_machine
from scheduler.machine.torch_build import torch_build

PACKAGES = ("torch", "triton", "transformers", "safetensors", "nvidia-ml-py", "numpy")
# How much is pinned as a test, in steps: pinning takes a third of a second per GiB, and most systems grant all memory.
PINNED_STEP, MOST_PINNED = 256 * MIB, 4 * GIB
DISK_SECONDS = 1.0

Probe = Callable[[], Any]


def probes(device: str) -> Iterator[tuple[str, Probe]]:
    """Names and probes, ordered so that later ones can use what earlier ones measured."""
    looked = _Look(device)
    yield "machine", looked.machine
    yield "versions", versions
    yield "GPU", looked.gpu
    yield "kernels", looked.kernels
    yield "pinning", looked.pinning
    yield "disk", looked.disk
    yield "speed", looked.speed
    yield "predictions", looked.predictions


def versions() -> dict[str, Any]:
    """Versions of Python, PyTorch with its build, and the packages that matter."""
    found: dict[str, Any] = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "torch": torch_build().version, "CUDA of torch": torch_build().cuda or "none"}


class _Look:
    """Probes of one machine and the requested device."""

    def __init__(self, device: str):
        self._device = device
        self._disk_bandwidth: float | None = None

    def machine(self) -> dict[str, Any]:
        cpu = read_machine("cpu")
        return {
            "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
            "container limit": container_memory() is not None,
            "processor": cpu.device_name,
            "cores": cpu.cores,
            "memory_bytes": cpu.host_total,
            "available_bytes": cpu.host_available,
        }

    def gpu(self) -> dict[str, Any]:
        """The GPU as CUDA reports it, if CUDA can be started."""
        machine = self._machine
        if machine.device == "cpu":
            return {"found": "none" if not has_nvidia_card() else "a card that PyTorch cannot use", "device": "cpu"}
        import torch

        found = {
            "name": machine.device_name,
            "memory_bytes": machine.device_total,
            "free_bytes": machine.device_free,
            "driver": machine.driver or "not told",
            "slot": machine.pcie or "not told",
        }
        properties = torch.cuda.get_device_properties(machine.torch_device)
        return {
            **found,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
            "note": machine.note or "none",
        }

    def kernels(self) -> dict[str, Any]:
        """The kernels for dequantization and for experts."""
        if self._machine.device == "cpu":
            return {"dequantization": "plain torch, on the processor"}
        from loaders.dequantize.stacks import fused_kernels
        from loaders.modules.dense_experts import MOST_DENSE_ROWS, grouped_products_wait

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fused = fused_kernels() is not None
        lacking = why_no_kernels() or next((str(warning.message) for warning in told), "the kernels fail")
        experts = "every expert" if grouped_products_wait(self._torch_device, self._dtype) else "grouped products"
        return {
            "dequantization": "fused Triton kernels" if fused else f"plain torch: {lacking}",
            f"experts of up to {MOST_DENSE_ROWS} rows": experts,
            "passes on the GPU whole": "replayed as CUDA graphs",
        }

    def pinning(self) -> dict[str, Any]:
        """How much host memory can be pinned for full copy speed, tried in steps up to a few GiB."""
        machine = self._machine
        limit = "none" if sys.platform == "win32" else _locked_limit()
        if machine.device == "cpu":
            return {"needed": False, "limit of ulimit -l": limit}
        from scheduler.streaming.host_memory import host_memory_for

        most = min(MOST_PINNED, machine.host_available // 4)
        with closing(host_memory_for(self._torch_device, None)) as host:
            while host.pinned_bytes + PINNED_STEP <= most:
                buffer = host.allocate(PINNED_STEP)
                buffer.tensor[::4096] = 1
                host.pin(buffer)
                if not buffer.pinned:
                    break
            granted = host.pinned_bytes
        return {"granted_bytes": granted, "refused": granted + PINNED_STEP <= most, "limit of ulimit -l": limit}

    def disk(self) -> dict[str, Any]:
        """Read speed of the largest file of the PyTorch installation, which every machine has."""
        spec = find_spec("torch")
        assert spec is not None and spec.origin is not None
        files = [path for path in (Path(spec.origin).parent / "lib").iterdir() if path.is_file()]
        measured = measure_read_bandwidth([max(files, key=lambda path: path.stat().st_size)], DISK_SECONDS)
        self._disk_bandwidth = measured.bytes_per_second if measured.direct else None
        return {
            "of": "the disk of the Python environment",
            "read_bytes_per_second": measured.bytes_per_second,
            "past the page cache": measured.direct,
        }

    def speed(self) -> dict[str, Any]:
        """The speeds that plans use: kept from an earlier start, or measured now."""
        machine = self._measured
        names = ("link_bandwidth", "pageable_bandwidth", "memory_bandwidth", "product_bandwidth")
        speeds = {f"{name}_bytes_per_second": getattr(machine, name) for name in names}
        found = {**speeds, "tera_flops": machine.flops and machine.flops / 1e12}
        found |= {name: getattr(machine, name) for name in ("pass_seconds", "layer_seconds")}
        return {"computing in": self._dtype_name, **{name: value for name, value in found.items() if value is not None}}

    def predictions(self) -> list[dict[str, Any]]:
        from offload_runtime.doctor.predictions import predictions

        return list(predictions(replace(self._measured, disk_bandwidth=self._disk_bandwidth), self._dtype_name))

    @cached_property
    def _machine(self) -> Machine:
        from offload_runtime.planning.planning import machine_for

        machine = machine_for(self._device)
        if machine.device == "cpu":
            return machine
        from scheduler.machine.cuda import as_cuda_numbers

        return as_cuda_numbers(machine)

    @cached_property
    def _measured(self) -> Machine:
        from offload_runtime.model.pass_overhead import measure_passes
        from scheduler.machine.cuda import current_device
        from scheduler.streaming.bandwidth import with_speed

        with current_device(self._torch_device):
            return with_speed(self._machine, self._dtype_name, measure_passes)

    @property
    def _torch_device(self) -> Any:
        import torch

        return torch.device(self._machine.torch_device)

    @property
    def _dtype(self) -> Any:
        import torch

        return getattr(torch, self._dtype_name)

    @property
    def _dtype_name(self) -> str:
        if self._machine.device == "cpu":
            return "float32"
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _locked_limit() -> str | int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else soft
