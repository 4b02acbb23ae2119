"""Passes of fixed shape captured as CUDA graphs: the host launches one graph where it launched hundreds of kernels."""

from collections.abc import Callable

import torch

from offload_runtime.host_reads import HostRead, no_host_reads
from offload_runtime.padded_passes import NotReplayable, Shape


class CudaGraphs:
    """A runner of padded passes: does the work of a shape once as it is, captures it, and replays it from then on.

    Graphs of one key length are kept at a time, so there are never more than there are widths. They share one pool:
    nothing in it outlives a replay, since the work goes from memory outside the pool to memory outside the pool.
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
        """Raises NotReplayable for work that the host decides on while it runs."""
        if all(held[1] != shape[1] for held in self._graphs):
            self._graphs.clear()
            # A pool that no graph uses any more cannot be used again: also one whose only capture failed.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            self._warm_up(work)
        except HostRead as error:
            raise NotReplayable(str(error)) from error
        try:
            return self._captured(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # whatever CUDA itself refuses to capture; the work as such has just run
            raise NotReplayable(str(error)) from error

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
