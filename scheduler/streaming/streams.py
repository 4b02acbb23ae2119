"""One interface to CUDA streams and events, so that streaming is one code path with and without a GPU.

On a CPU every copy is finished when its call returns, so there is nothing to order or record. Tests use a fake device
with threads, whose copies finish late.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a stream's work. Before it is first recorded, waiting for it returns at once."""

    def record(self) -> None:
        """Mark the work queued on the current stream so far."""

    def wait(self) -> None:
        """Make the current stream wait for the marked work; the host does not wait."""

    def synchronize(self) -> None:
        """Make this host thread wait until the marked work is done."""


class _Finished:
    """The event of a device that works synchronously."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...


class Streams:
    """A device's computing stream, which is current by default, and a second one for copies.

    This is a CPU, whose calling thread computes and copies. is_async: whether copies continue after their call returns.
    If not, the host writes to device memory itself.
    """

    is_async = False

    def copying(self) -> AbstractContextManager:
        """While open, the copying stream is this thread's current one."""
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy from host memory (uint8 [n]) to the device (uint8 [n]) on the current stream."""
        target.copy_(source)

    def event(self) -> Event:
        """A new event."""
        return _Finished()

    def synchronize(self) -> None:
        """Make the host wait until all copies on the copying stream have ended. Not for the hot path."""


class CudaStreams(Streams):
    """For a GPU."""

    is_async = True

    def __init__(self, device: torch.device):
        self._copying = torch.cuda.Stream(device)

    def copying(self) -> AbstractContextManager:
        return torch.cuda.stream(self._copying)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        return torch.cuda.Event(blocking=True)  # a waiting host thread sleeps

    def synchronize(self) -> None:
        self._copying.synchronize()


def streams_of(device: torch.device) -> Streams:
    """The streams of `device`."""
    return CudaStreams(device) if device.type == "cuda" else Streams()
