"""CUDA streams and events behind one face, so that what streams is one code path with and without an accelerator.

On a CPU every copy is finished when its call returns, so there is nothing to order and nothing to record. Tests put a
device of threads here, whose copies come late.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a stream's work. Before it is first recorded, nothing waits for it."""

    def record(self) -> None:
        """Mark what the current stream has been given so far."""

    def wait(self) -> None:
        """Let the current stream start nothing further before the marked work is done; the host goes on."""

    def synchronize(self) -> None:
        """Let the host wait, this thread alone, until the marked work is done."""


class Streams(Protocol):
    """A device's computing stream, which is current unless said otherwise, and one beside it for copies.

    is_async: whether copies go on after their call. Where they do not, the host writes to the device's memory itself.
    """

    is_async: bool

    def copying(self) -> AbstractContextManager:
        """While open, the copying stream is this thread's current one."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Give the current stream a copy from host memory (uint8 [n]) to the device (uint8 [n])."""

    def event(self) -> Event:
        """A new event."""

    def synchronize(self) -> None:
        """Let the host wait until every copy given to the copying stream has ended. Not for where weights stream."""


class _Finished:
    """The event of a device that works synchronously."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...


class HostStreams:
    """Of a CPU: the calling thread computes and copies."""

    is_async = False

    def copying(self) -> AbstractContextManager:
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def event(self) -> Event:
        return _Finished()

    def synchronize(self) -> None: ...


class CudaStreams:
    """Of a GPU."""

    is_async = True

    def __init__(self, device: torch.device):
        self._copying = torch.cuda.Stream(device)

    def copying(self) -> AbstractContextManager:
        return torch.cuda.stream(self._copying)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        return torch.cuda.Event(blocking=True)  # who waits on the host sleeps meanwhile

    def synchronize(self) -> None:
        self._copying.synchronize()


def streams_of(device: torch.device) -> Streams:
    """The streams of a device of this machine."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()
