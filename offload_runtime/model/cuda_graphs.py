"""Passes of fixed shape captured as CUDA graphs: the host launches one graph instead of hundreds of kernels.

A shape is captured when it is first needed, not while a prompt is read: a capture begins with a synchronization of the
device, copies of layers included, so nothing would overlap with it. And a conversation needs only a few shapes.
"""

import logging
from collections.abc import Callable

import torch

from loaders.message_text import first_line
from offload_runtime.model.host_reads import HostRead, no_host_reads
from offload_runtime.model.padded_passes import NotReplayable, PassSize
from scheduler.streaming.device_memory import may_capture, note_failed_capture

_log = logging.getLogger(__name__)


class CudaGraphs:
    """A runner of padded passes: runs the work of a shape once eagerly, captures it, and replays it from then on.

    Only graphs of one key length are kept, so there are at most as many as widths. They share one memory pool: nothing
    in it outlives a replay, since the work reads and writes buffers outside the pool.
    After a failed capture, this process tries no other: see `note_failed_capture`.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._graphs: dict[PassSize, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, shape: PassSize, work: Callable[[], None]) -> None:
        if shape not in self._graphs:
            self._graphs[shape] = self._new_graph(shape, work)
        self._graphs[shape].replay()

    def _new_graph(self, shape: PassSize, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Raises NotReplayable if the work reads device results on the host, or if capturing it fails."""
        if not may_capture():
            raise NotReplayable("an earlier capture failed")
        if all(held[1] != shape[1] for held in self._graphs):
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # a pool without graphs cannot be reused
        try:
            self._warm_up(work)
        except HostRead as error:
            raise NotReplayable(str(error)) from error
        try:
            return self._captured(work)
        except RuntimeError as error:  # also out of memory: the warm-up has just run, so the work itself fits
            note_failed_capture()
            _log.warning("CUDA graphs are given up, passes go on without: a capture failed (%s)", first_line(error))
            raise NotReplayable("capturing failed") from error

    def _warm_up(self, work: Callable[[], None]) -> None:
        """Run the work once on the capture stream, to load kernels and allocate the libraries' workspaces."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), no_host_reads():
                work()
        finally:
            current.wait_stream(self._stream)

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The work as a graph. Other threads continue meanwhile: a ring may be copying."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves its own stream current
        return graph
