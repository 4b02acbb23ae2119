"""Measures the device in about a second: copies to it, matrix products on it, its own memory."""

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
from scheduler.streaming.device_memory import release_cached
from scheduler.streaming.host_memory import host_memory_for
from scheduler.streaming.link import Link
from scheduler.streaming.streams import streams_of

COPY_BYTES = 128 * MIB
REPEATS = 3
LONG_SECONDS = 0.5  # a run that takes longer is not repeated
# An idle GPU takes some time to raise its clocks and those of its link. Several runs are timed as one, so that the
# tens of microseconds of launching and waiting do not count.
WARM_UP_SECONDS = {"cuda": 0.2, "cpu": 0.0}
RUNS = {"cuda": 8, "cpu": 1}
PRODUCT_SIZE = 4096  # square matrices of this size reach the peak of a GPU's tensor cores
# On a CPU: products of a few rows, dominated by the weights, and of a tree's rows, dominated by the arithmetic.
FEW_ROWS, MANY_ROWS = 2, 64
# Larger than the caches: a pass reads its weights once.
SWEEP_BYTES = {"cuda": 512 * MIB, "cpu": 64 * MIB}


Measure = Callable[[torch.device, torch.dtype], Figures]


def with_speed(machine: Machine, dtype: str, passes: Measure) -> Machine:
    """`machine` with the speed of its device, from an earlier run or measured now.

    passes: measures the fixed costs of a pass, `pass_seconds` and `layer_seconds`.
    """
    subject, conditions = speed_subject(machine), speed_conditions(machine, dtype)
    figures = recall(subject, conditions)
    if figures is None:
        device, computed_in = torch.device(machine.torch_device), getattr(torch, dtype)
        try:
            figures = measure_speed(device, computed_in) | passes(device, computed_in)
        finally:
            release_cached()  # half a gigabyte, which the plan needs for layers
        remember(subject, conditions, figures)
    return with_measured_speed(machine, figures)


@torch.inference_mode()
def measure_speed(device: torch.device, dtype: torch.dtype) -> Figures:
    """The fields of Machine for the speed of the device and, on a GPU, of the link to it."""
    figures = {"memory_bandwidth": _weights_bytes(device) / _product_seconds(device, dtype, rows=1)}
    if device.type == "cpu":
        figures |= _processor_speed(device, dtype)
    else:
        figures["flops"] = _peak_flops(device, dtype)
        figures |= link_figures(device)
    return figures


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of a few runs, after one (on a GPU several) to warm up memory, kernel choice and clocks."""

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


def link_figures(device: torch.device) -> Figures:
    """Bandwidth of copies from pinned memory, if that much can be pinned, and from pageable memory.

    Copied in pieces as layers are, so that the overhead of a piece counts.
    """
    with closing(host_memory_for(device, None)) as host, ExitStack() as stack:
        streams = streams_of(device)
        stack.callback(streams.synchronize)  # also after Ctrl-C: the source of a copy must stay pinned
        link = Link(streams, host)
        pageable, pinned = host.allocate(COPY_BYTES), host.allocate(COPY_BYTES)
        for buffer in (pageable, pinned):
            buffer.tensor.fill_(1)  # untouched memory is one shared page of zeros, which copies faster
        host.pin(pinned)
        target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
        with streams.copying():
            figures = {"pageable_bandwidth": COPY_BYTES / _seconds(device, partial(link.send, target, pageable))}
            if pinned.pinned:
                figures["link_bandwidth"] = COPY_BYTES / _seconds(device, partial(link.send, target, pinned))
    return figures


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """With random matrices, like weights: constant ones need less power, so that clocks would stay higher."""
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype, device=device) for _ in range(2))
    return 2 * PRODUCT_SIZE**3 / _seconds(device, lambda: left @ right)


def _processor_speed(device: torch.device, dtype: torch.dtype) -> Figures:
    """A product takes a fixed time for its weights and a time per row: two sizes tell them apart.

    Small square products, which fit in the caches, run up to twice as fast as a tree's rows with a layer's weights.
    """
    few, many = (_product_seconds(device, dtype, rows) for rows in (FEW_ROWS, MANY_ROWS))
    nbytes = _weights_bytes(device)
    per_row = max((many - few) / (MANY_ROWS - FEW_ROWS), many / MANY_ROWS / 2)  # noise must not make rows free
    weights = max(few - FEW_ROWS * per_row, few / 2)
    return {"flops": 2 * nbytes / dtype.itemsize / per_row, "product_bandwidth": nbytes / weights}


def _weights_bytes(device: torch.device) -> int:
    return SWEEP_BYTES[device.type]


def _product_seconds(device: torch.device, dtype: torch.dtype, rows: int) -> float:
    """The product of `rows` rows with a large matrix that is read from memory."""
    columns = 4096
    matrix = torch.ones(_weights_bytes(device) // columns // dtype.itemsize, columns, dtype=dtype, device=device)
    values = torch.ones(rows, columns, dtype=dtype, device=device)
    return _seconds(device, lambda: nn.functional.linear(values, matrix))
