"""How fast the device is: copies to it, matrix products on it, its own memory. Measured in well under a second."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch
from torch import nn

from scheduler.bounce import Link
from scheduler.host_memory import host_memory_for
from scheduler.machine import Machine
from scheduler.measurements import Figures, recall, remember, speed_conditions, speed_subject, with_measured_speed
from scheduler.sizes import MIB
from scheduler.streams import streams_of

COPY_BYTES = 128 * MIB
REPEATS = 3
# Square matrices of this size reach the peak of a GPU's tensor cores; on a processor a product of 512 takes 1 to 10 ms.
PRODUCT_SIZE = {"cuda": 4096, "cpu": 512}
# Larger than the caches: weights are read once in a pass.
SWEEP_BYTES = {"cuda": 512 * MIB, "cpu": 64 * MIB}


def with_speed(machine: Machine, dtype: str) -> Machine:
    """`machine` with the speed of its device, as kept from an earlier start or as measured now."""
    subject, conditions = speed_subject(machine), speed_conditions(machine, dtype, torch.__version__)
    figures = recall(subject, conditions)
    if figures is None:
        figures = measure_speed(torch.device(machine.device), getattr(torch, dtype))
        remember(subject, conditions, figures)
    return with_measured_speed(machine, figures)


@torch.inference_mode()
def measure_speed(device: torch.device, dtype: torch.dtype) -> Figures:
    """The fields of Machine that say how fast the device computes and, on a GPU, how fast the link to it is."""
    figures = {
        "flops": _product_flops(device, dtype),
        "memory_bandwidth": _memory_bandwidth(device, dtype),
    }
    if device.type == "cuda":
        figures |= _link_figures(device)
    return figures


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of a few runs, after one that pays for memory and for choosing kernels."""
    times = []
    for _ in range(1 + REPEATS):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _link_figures(device: torch.device) -> Figures:
    """Of copies out of pinned memory, if so much can be pinned, and of the way that any other memory takes."""
    with closing(host_memory_for(device, None)) as host:
        streams = streams_of(device)
        link = Link(streams, host)
        pageable, pinned = host.allocate(COPY_BYTES), host.allocate(COPY_BYTES)
        for buffer in (pageable, pinned):
            buffer.tensor.fill_(1)  # untouched memory is one page of zeros, which copies faster than memory does
        host.pin(pinned)
        place = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
        with streams.copying():
            figures = {"pageable_bandwidth": COPY_BYTES / _seconds(device, partial(link.send, place, pageable))}
            if pinned.pinned:
                figures["link_bandwidth"] = COPY_BYTES / _seconds(device, partial(link.send, place, pinned))
        streams.synchronize()
    return figures


def _product_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _seconds(device, lambda: left @ right)


def _memory_bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of a large matrix with one vector, as in a pass of one row."""
    columns = 4096
    matrix = torch.ones(SWEEP_BYTES[device.type] // columns // dtype.itemsize, columns, dtype=dtype, device=device)
    vector = torch.ones(1, columns, dtype=dtype, device=device)
    return matrix.nbytes / _seconds(device, lambda: nn.functional.linear(vector, matrix))
