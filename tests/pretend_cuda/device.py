"""The pretended GPU itself: what `torch.cuda`, NVML and the CUDA runtime say of it, for the length of a test."""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from loaders.dequantize import stacks
from loaders.dequantize.ggml import codebooks
from loaders.dequantize.lossless import plain
from loaders.lossless import planes
from loaders.sizes import GIB
from offload_runtime.planning import planning
from scheduler.machine.machine import read_machine
from scheduler.machine.measurements import remember, speed_conditions, speed_subject
from scheduler.machine.torch_build import TorchBuild, torch_build
from tests.fakes.fake_nvml import fake_nvml
from tests.pretend_cuda import graphs, streams, tensors
from tests.pretend_cuda.counts import Counts, counting

CARD = {
    "uuid": "GPU-5d04a1b2-0000-4000-8000-0123456789ab",
    "name": "NVIDIA GeForce RTX 4090",
    "total": 25 * GIB,
    "free": 24 * GIB,
    "cores": 16384,
    "clock": 2520,
    "slot": (4, 16),
}
CAPABILITY = (8, 9)
# Kept on a device as long as the process runs, which outlives this one.
_TABLES = (plain._table, plain.numbers_by_byte, planes._shifts, codebooks._made_for)
# Kept as if they had been measured: measuring takes 10 GB of products, and tests must not depend on times.
FIGURES = {
    "memory_bandwidth": 9e11,
    "flops": 1.5e14,
    "link_bandwidth": 2.5e10,
    "pageable_bandwidth": 1e10,
    "pass_seconds": 1e-3,
    "layer_seconds": 2e-4,
}


@dataclass(frozen=True)
class PretendCuda:
    """What tests ask of the device. `faults` lists what went wrong there so far, whoever caught it."""

    timeline: streams.Timeline

    @property
    def faults(self) -> list[str]:
        return self.timeline.faults

    @property
    def held_bytes(self) -> int:
        """Device memory in use."""
        return self.timeline.held

    def counting(self) -> AbstractContextManager[Counts]:
        """Count what this thread gives to the device in a block."""
        return counting()

    def tensor(self, values: Tensor) -> Tensor:
        """A copy of `values` on the device, at no cost."""
        return tensors.wrapped(values.clone())


@contextmanager
def pretend_cuda(
    card: dict[str, Any] = CARD, capability: tuple[int, int] = CAPABILITY, dtype: str = "float32"
) -> Iterator[PretendCuda]:
    """For the block there is one GPU, whose speed is known for models in `dtype`.

    Raises PretendFault at its end if anything was wrong on the device. Skips the test where there is a real one.
    """
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU, which would have to be hidden")
    timeline = streams.start()
    with ExitStack() as resources:
        resources.callback(tensors.install())
        for tables in (stacks.fused_kernels, *_TABLES):
            resources.callback(tables.cache_clear)
        _patch(resources.enter_context(pytest.MonkeyPatch.context()), card, capability)
        machine = read_machine("cuda")
        remember(speed_subject(machine), speed_conditions(machine, dtype), FIGURES)
        yield PretendCuda(timeline)
    if timeline.faults:
        raise streams.PretendFault("; ".join(timeline.faults))


def _patch(patch: pytest.MonkeyPatch, card: dict[str, Any], capability: tuple[int, int]) -> None:
    """What the driver, PyTorch and the project's look at both say of a GPU."""
    patch.setitem(sys.modules, "pynvml", fake_nvml(card))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    patch.setattr(planning, "torch_build", lambda: TorchBuild(torch_build().version, "13.0"))
    stacks.fused_kernels.cache_clear()
    patch.setattr(stacks, "why_no_kernels", lambda: "no kernel runs on a pretended GPU")
    for name, value in _cuda_functions(card, capability).items():
        patch.setattr(torch.cuda, name, value, raising=False)
    patch.setattr(torch, "Generator", _Generator)
    for name in ("tensor", "as_tensor"):
        patch.setattr(torch, name, _made_from_data(getattr(torch, name)))
    patch.setattr(Tensor, "to", _copied_to(Tensor.to))
    patch.setattr(Tensor, "pin_memory", _pinned)
    patch.setattr(Tensor, "is_pinned", lambda tensor, *args: streams.timeline.is_pinned(tensor))


def _cuda_functions(card: dict[str, Any], capability: tuple[int, int]) -> dict[str, Any]:
    """What replaces functions and classes of `torch.cuda`."""
    major, minor = capability
    properties = SimpleNamespace(
        name=card["name"],
        total_memory=card["total"],
        major=major,
        minor=minor,
        multi_processor_count=128,
        uuid=card["uuid"].removeprefix("GPU-"),
    )
    pools = iter(range(sys.maxsize))

    def timeline() -> streams.Timeline:
        return streams.timeline

    def reset_peak(device: Any = None) -> None:
        timeline().peak = timeline().held

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda device: nullcontext(),
        "get_device_name": lambda device=None: card["name"],
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or major >= 8,
        "mem_get_info": lambda device=None: (card["free"] - timeline().held, card["total"]),
        "memory_allocated": lambda device=None: timeline().held,
        "memory_reserved": lambda device=None: timeline().held,
        "max_memory_allocated": lambda device=None: timeline().peak,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: torch.empty(0),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: streams.host_waits(streams.timeline.everything()),
        "Stream": streams.Stream,
        "Event": streams.Event,
        "stream": streams.on_stream,
        "set_stream": streams.set_stream,
        "current_stream": streams.current_stream,
        "default_stream": lambda device=None: timeline().default,
        "CUDAGraph": graphs.Graph,
        "graph": graphs.capture,
        "graph_pool_handle": lambda: (0, next(pools)),
        "cudart": _Runtime,
    }


class _Runtime:
    """The CUDA runtime, as far as it pins memory. Pages are granted without a limit."""

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        streams.timeline.register(address, nbytes)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        with streams.lock:
            streams.timeline.unregister(address)
        return 0

    def cudaGetLastError(self) -> int:
        return 0


class _Generator(torch.Generator):
    """Stands in for `torch.Generator`."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        return tensors.PretendGenerator() if torch.device(device).type == "cuda" else torch._C.Generator(device)


def _copied_to(to: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.to` without the question which GPU "cuda" is: the device guard that is there knows none."""

    def indexed(value: Any) -> Any:
        return streams.CUDA if value in ("cuda", torch.device("cuda")) else value

    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        args = tuple(indexed(arg) if isinstance(arg, str | torch.device) else arg for arg in args)
        return to(tensor, *args, **{**kwargs, **({"device": indexed(kwargs["device"])} if "device" in kwargs else {})})

    return call


def _made_from_data(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` or `as_tensor`, whose own copy to the device does not come to `dispatch`."""

    def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(device)

    return call


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    """Stands in for `Tensor.pin_memory`: a copy in memory that counts as pinned as long as anything refers to it."""
    if tensor.numel() == 0:
        return tensor.clone()
    memory = np.empty(tensor.nbytes, np.uint8)
    address = memory.ctypes.data
    streams.timeline.register(address, tensor.nbytes)
    weakref.finalize(memory, streams.timeline.pinned.pop, address)
    return torch.from_numpy(memory).view(tensor.dtype).view(tensor.shape).copy_(tensor)
