"""CUDA streams and events behind one face, so that the ring is one code path with and without an accelerator.

On a CPU every copy is finished when its call returns, so there is nothing to order and nothing to record.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def record(self) -> None:
        """Mark what the current stream has been given so far."""

    def wait(self) -> None:
        """Let the current stream start nothing further before the marked work is done; the host goes on."""


class FinishedEvent:
    """The event of a device that works synchronously."""

    def record(self) -> None: ...

    def wait(self) -> None: ...


class CopyStream:
    """A stream beside the computing one."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def active(self) -> AbstractContextManager:
        """While open, copies of this thread are queued on this stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def event(self) -> Event:
        return FinishedEvent() if self._stream is None else torch.cuda.Event()

    def synchronize(self) -> None:
        """Let the host wait until every copy queued here has ended."""
        if self._stream is not None:
            self._stream.synchronize()
