"""Allocates device memory and keeps track of its peak."""

import threading

import torch
from torch import Tensor

from scheduler.streaming.host_memory import allocate

# After a failed capture, PyTorch's allocator, one per process, stays in capture mode for good (2.11, 2.12:
# pytorch#180395): the next `empty_cache` fails an assertion, and every capture begins with one. Later versions leak
# only the graph's memory pool.
_capture_failed = threading.Event()


def note_failed_capture() -> None:
    """From now on this process captures nothing, and PyTorch keeps the blocks that were freed."""
    _capture_failed.set()


def may_capture() -> bool:
    """Whether CUDA graphs can be captured: true until a capture fails."""
    return not _capture_failed.is_set()


def release_cached() -> None:
    """Return PyTorch's freed blocks to the driver, unless a failed capture has made that unsafe."""
    if torch.cuda.is_initialized() and may_capture():
        torch.cuda.empty_cache()


class DeviceMemory:
    """Allocates byte buffers on one device and counts them.

    On CUDA the peak is that of PyTorch's allocator, activations included. On a CPU, which has no such counter, it is
    counted here: every buffer handed out or noted with `add`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._held = 0
        self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def empty(self, nbytes: int) -> Tensor:
        """An uninitialised uint8 buffer [nbytes]. Raises MemoryError on a CPU, PyTorch's OutOfMemoryError on a GPU.

        On a CPU it uses huge pages, which the system clears several times as fast as PyTorch's small ones.
        """
        on_cpu = self.device.type == "cpu"
        buffer = allocate(nbytes) if on_cpu else torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.add(nbytes)
        return buffer

    def add(self, nbytes: int) -> None:
        """Count a buffer that was allocated elsewhere and is kept."""
        self._held += nbytes
        self._peak = max(self._peak, self._held)

    def remove(self, nbytes: int) -> None:
        """Count bytes noted with `add` as freed."""
        self._held -= nbytes

    def release_unused(self) -> None:
        """Return freed memory to the driver; otherwise it may fill the device, whatever the plan says.

        PyTorch keeps freed blocks and allocates more if the next request is larger. It releases them when its own
        allocation fails, but loading kernels and other programs allocate from the driver.
        """
        if self.device.type == "cuda":
            release_cached()

    @property
    def peak_bytes(self) -> int:
        """Most bytes held at once since this object was created."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._peak
