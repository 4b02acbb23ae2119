"""The device's memory: where buffers come from, and how much was held at most."""

import threading

import torch
from torch import Tensor

from scheduler.streaming.host_memory import allocate

# A capture that fails leaves PyTorch's allocator, of which a process has one, believing in it for ever (2.11, 2.12:
# pytorch#180395): the next `empty_cache` ends in an assertion, and a capture begins with one. Later versions leak the
# memory pool of the graph, no more.
_capture_failed = threading.Event()


def note_failed_capture() -> None:
    """From now on nothing is captured in this process, and blocks that were freed stay PyTorch's."""
    _capture_failed.set()


def may_capture() -> bool:
    """Whether CUDA graphs can be captured: until a capture has failed."""
    return not _capture_failed.is_set()


def release_cached() -> None:
    """Give the driver back the freed blocks that PyTorch keeps; they stay where a failed capture made that unsafe."""
    if torch.cuda.is_initialized() and may_capture():
        torch.cuda.empty_cache()


class DeviceMemory:
    """Allocates byte buffers on one device and counts them.

    On CUDA the peak is what PyTorch's allocator saw, activations included. A CPU has no such counter, so there the
    peak is counted: every buffer handed out here or noted with `add`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._held = 0
        self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def empty(self, nbytes: int) -> Tensor:
        """A uint8 buffer ``[nbytes]`` of any content. Raises MemoryError on a CPU, PyTorch's OutOfMemoryError on a GPU.

        On a CPU in huge pages: the system clears them several times as fast as the small ones that PyTorch takes.
        """
        on_cpu = self.device.type == "cpu"
        buffer = allocate(nbytes) if on_cpu else torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.add(nbytes)
        return buffer

    def add(self, nbytes: int) -> None:
        """Count a buffer that was allocated elsewhere and stays."""
        self._held += nbytes
        self._peak = max(self._peak, self._held)

    def remove(self, nbytes: int) -> None:
        """Count what was noted with `add` as freed."""
        self._held -= nbytes

    def release_unused(self) -> None:
        """Give the driver back what was freed: a device may be filled up by it otherwise, whatever the plan says.

        PyTorch keeps freed blocks, and takes more beside them where what is asked for next is larger. It parts with
        them where it finds no memory, but kernels that are loaded and other programs ask the driver.
        """
        if self.device.type == "cuda":
            release_cached()

    @property
    def peak_bytes(self) -> int:
        """Most bytes held at once since this object was made."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._peak
