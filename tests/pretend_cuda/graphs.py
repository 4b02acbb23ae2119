"""Graphs of the pretended GPU: what is captured is recorded, not done; replaying does it again in the same memory."""

import sys
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.pretend_cuda import streams
from tests.pretend_cuda.counts import counted


class Graph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.work: list[tuple[OpOverload, Any, Any, Any]] | None = None
        self.outside: list[weakref.ref[streams.Block]] = []  # memory that it uses and does not own

    def replay(self) -> None:
        """Do the work again. Values are those that its memory holds now; numbers are those of the capture."""
        if self.work is None:
            raise RuntimeError("called CUDAGraph::replay without a preceding successful capture")
        if any(block() is None for block in self.outside):
            raise streams.timeline.fault("a graph uses memory that was freed after its capture")
        counted().replays += 1
        stream = streams.current_stream()
        with streams.lock, torch.inference_mode():
            stream.given += 1
            streams.timeline.arrive(stream, 0, sys.maxsize)
            for function, args, kwargs, out in self.work:
                _do_again(function, args, kwargs, out)

    def reset(self) -> None:
        self.work = None


class capture(AbstractContextManager):  # stands in for `torch.cuda.graph`
    """What this thread gives the device in the block is recorded into `graph`, and memory stays as it was."""

    def __init__(self, graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"):
        self._graph, self._stream = graph, stream or streams.Stream()
        self._resources = ExitStack()

    def __enter__(self) -> None:
        streams.host_waits(streams.current_stream().now())
        counted().captures += 1
        self._stream.wait_stream(streams.current_stream())
        self._resources.enter_context(streams.on_stream(self._stream))
        _thread.work, _thread.before, _thread.outside = [], {}, {}
        _thread.first = streams.Block(0, 0, self._stream, 0).number

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        work, _thread.work = _thread.work, None
        for memory, values in _thread.before.values():
            memory.copy_(values)
        _thread.before.clear()
        self._resources.close()
        streams.current_stream().wait_stream(self._stream)
        if error is None:
            self._graph.work, self._graph.outside = work, list(_thread.outside.values())


class _Thread(threading.local):
    def __init__(self) -> None:
        self.work: list[tuple[OpOverload, Any, Any, Any]] | None = None
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.outside: dict[int, weakref.ref[streams.Block]] = {}
        self.first = 0  # what is made in the capture has higher numbers


_thread = _Thread()


def is_capturing() -> bool:
    return _thread.work is not None


def refuse(what: str) -> None:
    """Raises what CUDA says of a wait while this thread captures; the fixture finds it afterwards."""
    if is_capturing():
        streams.timeline.faults.append(f"a capture failed: {what} waits for the device")
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")


def before(written: Iterable[Tensor]) -> None:
    """While capturing: keep the values of memory that is about to be written."""
    if _thread.work is not None:
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in _thread.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                _thread.before[storage.data_ptr()] = (whole, whole.clone())


def used(blocks: Iterable[streams.Block]) -> None:
    """While capturing: memory that work reads or writes."""
    if _thread.work is not None:
        earlier = (block for block in blocks if block.number < _thread.first)
        _thread.outside.update((block.number, weakref.ref(block)) for block in earlier)


def record(function: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
    """While capturing: what was just done, so that it can be done again."""
    if _thread.work is not None:
        _thread.work.append((function, args, kwargs, out))


def _do_again(function: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
    if function.is_view:
        return
    again = function(*args, **kwargs)
    if function._schema.is_mutable:
        return
    many = isinstance(out, list | tuple)
    for kept, new in zip(out if many else (out,), again if many else (again,)):
        if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
            kept.copy_(new)
