"""Processes blocks of a weight in parallel, each on one core.

torch's own threads split every single operation. An operation on a block takes about 50 µs, as long as waking a thread:
on two cores int4 took 2.2 ns a value with both, and 0.6 with one alone. So every thread takes whole blocks, which gives
0.35.
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
LEAST_SHARE = 2  # blocks per thread: with fewer, a thread costs as much as it saves
# Values per block. On a CPU 2 MB in float32: smaller blocks take more time in Python, larger ones leave the cache. On a
# GPU a launch takes about 5 µs, enough to write a million values: a matrix is one block.
BLOCK_VALUES = {"cpu": 1 << 19, "cuda": plain_cost.BLOCK_VALUES}


def block_values(out: Tensor) -> int:
    """How many values of `out` a block has."""
    return BLOCK_VALUES[out.device.type]


def for_each(work: Callable[[Item], None], parts: Iterable[Item], out: Tensor) -> None:
    """Call `work` for all parts, which write to `out`, in any order; returns when all are done.

    Raises what `work` raised, after all threads have stopped.
    """
    every = list(parts)
    threads = torch.get_num_threads()
    if out.device.type != "cpu" or threads == 1:
        for part in every:
            work(part)
        return
    left = iter(every)  # a list iterator gives each part to one thread only
    count = min(threads, len(every) // LEAST_SHARE) - 1
    helpers = [_pool(threads - 1).submit(_work_through, work, left) for _ in range(count)]
    torch.set_num_threads(1)  # for this thread's operations
    try:
        _work_through(work, left)
    finally:
        for _ in left:
            pass  # after Ctrl-C no new part is started
        wait(helpers)  # they write to memory that may soon be reused
        torch.set_num_threads(threads)
    for helper in helpers:
        helper.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=torch.set_num_threads, initargs=(1,))


def _work_through(work: Callable[[Item], None], left: Iterator[Item]) -> None:
    with torch.inference_mode():  # it is thread-local
        for part in left:
            work(part)
