"""How fast the device is: copies to it, matrix products on it, its own memory. Measured in about a second."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

import torch
from torch import nn

from loaders.sizes import MIB
from scheduler.machine.machine import Machine
from scheduler.machine.measurements import (
    Figures,
    recall,
    remember,
    speed_conditions,
    speed_subject,
    with_measured_speed,
)
from scheduler.streaming.bounce import Link
from scheduler.streaming.device_memory import release_cached
from scheduler.streaming.host_memory import host_memory_for
from scheduler.streaming.streams import streams_of

COPY_BYTES = 128 * MIB
REPEATS = 3
LONG_SECONDS = 0.5  # what takes so long is not repeated
# A GPU at rest takes some time to raise its clocks and those of its link; and so that launching and waiting, some tens
# of microseconds, do not count, several runs are timed as one.
WARM_UP_SECONDS = {"cuda": 0.2, "cpu": 0.0}
RUNS = {"cuda": 8, "cpu": 1}
PRODUCT_SIZE = 4096  # square matrices of this size reach the peak of a GPU's tensor cores
# On a processor: of a few rows, where weights cost most, and of as many as a tree has, where multiplying them does.
FEW_ROWS, MANY_ROWS = 2, 64
# Larger than the caches: weights are read once in a pass.
SWEEP_BYTES = {"cuda": 512 * MIB, "cpu": 64 * MIB}


Measure = Callable[[torch.device, torch.dtype], Figures]


def with_speed(machine: Machine, dtype: str, passes: Measure) -> Machine:
    """`machine` with the speed of its device, as kept from an earlier start or as measured now.

    passes: measures what of a pass does not depend on the model's size, `pass_seconds` and `layer_seconds`.
    """
    subject, conditions = speed_subject(machine), speed_conditions(machine, dtype)
    figures = recall(subject, conditions)
    if figures is None:
        device, computed_in = torch.device(machine.torch_device), getattr(torch, dtype)
        try:
            figures = measure_speed(device, computed_in) | passes(device, computed_in)
        finally:
            release_cached()  # half a gigabyte that the plan gives to layers
        remember(subject, conditions, figures)
    return with_measured_speed(machine, figures)


@torch.inference_mode()
def measure_speed(device: torch.device, dtype: torch.dtype) -> Figures:
    """The fields of Machine that say how fast the device computes and, on a GPU, how fast the link to it is."""
    figures = {"memory_bandwidth": _weights_bytes(device) / _product_seconds(device, dtype, rows=1)}
    if device.type == "cpu":
        figures |= _processor_speed(device, dtype)
    else:
        figures["flops"] = _peak_flops(device, dtype)
        figures |= _link_figures(device)
    return figures


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of a few runs, after one that pays for memory and for choosing kernels, and more on a GPU."""

    def run(times: int) -> float:
        _synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            work()
        _synchronize(device)
        return (time.perf_counter() - started) / times

    ready = time.perf_counter() + WARM_UP_SECONDS[device.type]
    while (seconds := run(1)) <= LONG_SECONDS and time.perf_counter() < ready:
        pass
    if seconds > LONG_SECONDS:
        return seconds
    return min(run(RUNS[device.type]) for _ in range(REPEATS))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _link_figures(device: torch.device) -> Figures:
    """Of copies out of pinned memory, if so much can be pinned, and of the way that any other memory takes.

    As layers are copied: in pieces, whose own costs count.
    """
    with closing(host_memory_for(device, None)) as host, ExitStack() as stack:
        streams = streams_of(device)
        stack.callback(streams.synchronize)  # also after Ctrl-C: memory that is copied from must stay pinned
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
    return figures


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of matrices as weights are: products of equal numbers need less power, so that clocks stay higher."""
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype, device=device) for _ in range(2))
    return 2 * PRODUCT_SIZE**3 / _seconds(device, lambda: left @ right)


def _processor_speed(device: torch.device, dtype: torch.dtype) -> Figures:
    """A product takes a time for its weights, whatever the rows, and then one for every row: two sizes tell them apart.

    Small square products, which the caches hold, run up to twice as fast as those of a tree with a layer's weights.
    """
    few, many = (_product_seconds(device, dtype, rows) for rows in (FEW_ROWS, MANY_ROWS))
    nbytes = _weights_bytes(device)
    per_row = max((many - few) / (MANY_ROWS - FEW_ROWS), many / MANY_ROWS / 2)  # noise must not make rows free
    weights = max(few - FEW_ROWS * per_row, few / 2)
    return {"flops": 2 * nbytes / dtype.itemsize / per_row, "product_bandwidth": nbytes / weights}


def _weights_bytes(device: torch.device) -> int:
    return SWEEP_BYTES[device.type]


def _product_seconds(device: torch.device, dtype: torch.dtype, rows: int) -> float:
    """Of a large matrix, read from memory, with `rows` rows."""
    columns = 4096
    matrix = torch.ones(_weights_bytes(device) // columns // dtype.itemsize, columns, dtype=dtype, device=device)
    values = torch.ones(rows, columns, dtype=dtype, device=device)
    return _seconds(device, lambda: nn.functional.linear(values, matrix))
