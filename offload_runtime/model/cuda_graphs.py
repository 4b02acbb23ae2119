"""Passes of fixed shape captured as CUDA graphs: the host launches one graph where it launched hundreds of kernels.

A shape is captured when it is first needed, not while a prompt is read: a capture begins with the host waiting for the
device, copies of layers included, so nothing would run beside it; and a conversation needs few of the shapes.
"""

import logging
from collections.abc import Callable

import torch

from offload_runtime.model.host_reads import HostRead, no_host_reads
from offload_runtime.model.padded_passes import NotReplayable, Shape
from scheduler.streaming.device_memory import may_capture, note_failed_capture

_log = logging.getLogger(__name__)


class CudaGraphs:
    """A runner of padded passes: does the work of a shape once as it is, captures it, and replays it from then on.

    Graphs of one key length are kept at a time, so there are never more than there are widths. They share one pool:
    nothing in it outlives a replay, since the work goes from memory outside the pool to memory outside the pool.
    After a capture that failed there is no other, in this process: see `note_failed_capture`.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, shape: Shape, work: Callable[[], None]) -> None:
        if shape not in self._graphs:
            self._graphs[shape] = self._new_graph(shape, work)
        self._graphs[shape].replay()

    def _new_graph(self, shape: Shape, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Raises NotReplayable for work that the host decides on while it runs, and where capturing it fails."""
        if not may_capture():
            raise NotReplayable("an earlier capture failed")
        if all(held[1] != shape[1] for held in self._graphs):
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # a pool that no graph uses any more cannot be used again
        try:
            self._warm_up(work)
        except HostRead as error:
            raise NotReplayable(str(error)) from error
        try:
            return self._captured(work)
        except RuntimeError as error:  # also out of memory: the work as such has just run, so that it fits without
            note_failed_capture()
            _log.warning("CUDA graphs are given up, passes go on without: a capture failed (%s)", _first_line(error))
            raise NotReplayable("capturing failed") from error

    def _warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once where it will be captured: kernels are loaded and libraries' workspaces made by that."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), no_host_reads():
                work()
        finally:
            current.wait_stream(self._stream)

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The work as a graph. Other threads go on meanwhile: a ring may be copying."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(current)  # a capture that failed leaves its own stream behind as the current one
        return graph


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
