"""Blocks of a weight worked on side by side, each by one core.

torch's own threads share every single operation. Of those that decode a block each takes some 50 µs, as long as waking
a thread: on two cores int4 was decoded at 2.2 ns a value by both, and at 0.6 by one alone. So every thread takes whole
blocks, at 0.35.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from loaders.dequantize import plain_cost

Item = TypeVar("Item")
LEAST_SHARE = 2  # blocks: to have a thread take fewer costs as much as it saves
# Values of a block. On a CPU 2 MB in float32: smaller ones take more time in Python, larger ones leave the cache. On a
# GPU an operation takes some 5 µs to launch, in which it could have written a million values: a matrix is one block.
BLOCK_VALUES = {"cpu": 1 << 19, "cuda": plain_cost.BLOCK_VALUES}


def block_values(out: Tensor) -> int:
    """How many values of what is written to `out` are worked on at once."""
    return BLOCK_VALUES[out.device.type]


def for_each(work: Callable[[Item], None], parts: Iterable[Item], out: Tensor) -> None:
    """Call `work` for all parts of what is written to `out`, in any order; returns when all are done.

    Raises what `work` raised; nothing is worked on any more then.
    """
    every = list(parts)
    threads = torch.get_num_threads()
    if out.device.type != "cpu" or threads == 1:
        for part in every:
            work(part)
        return
    left = iter(every)  # a list's iterator hands each part to one thread
    count = min(threads, len(every) // LEAST_SHARE) - 1
    helpers = [_pool(threads - 1).submit(_work_through, work, left) for _ in range(count)]
    torch.set_num_threads(1)  # of this thread's operations
    try:
        _work_through(work, left)
    finally:
        for _ in left:
            pass  # after Ctrl-C nothing more is begun
        wait(helpers)  # they write where something else may soon be
        torch.set_num_threads(threads)
    for helper in helpers:
        helper.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=torch.set_num_threads, initargs=(1,))


def _work_through(work: Callable[[Item], None], left: Iterator[Item]) -> None:
    with torch.inference_mode():  # which each thread has for itself
        for part in left:
            work(part)
