"""Host memory of exactly the size asked for, page-locked ("pinned") for a GPU as far as the system allows.

PyTorch's own pinned allocator rounds up to powers of two: a layer of 1.711 GB takes 2.147. Here memory is mapped and
then registered with CUDA, whole pages and no more.

Pinned pages are left out of forks of this process: a fork would have to copy them all at once, since the device keeps
reading them at their address.
"""

import ctypes
import mmap
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from weakref import WeakSet

import torch
from torch import Tensor

from loaders.io.direct import aligned_memory, round_up

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU


class CudaPinning:
    """Locks whole pages in memory through the CUDA runtime, which grants 0.5 to 1 GB on WSL2, elsewhere nearly all."""

    def __init__(self, device: torch.device):
        self._device = device
        self._runtime = torch.cuda.cudart()  # starts CUDA

    def register(self, address: int, nbytes: int) -> bool:
        """Pin the pages; returns whether that was granted."""
        with torch.cuda.device(self._device):
            granted = int(self._runtime.cudaHostRegister(address, nbytes, _PORTABLE)) == 0
            if not granted:
                self._clear_error()
            return granted

    def unregister(self, address: int) -> None:
        """Unpin the pages. Nothing may be copied from there any more."""
        with torch.cuda.device(self._device):
            if int(self._runtime.cudaHostUnregister(address)) != 0:
                self._clear_error()

    def _clear_error(self) -> None:
        """A refused request stays this thread's last CUDA error; the next kernel launch would fail with it."""
        if hasattr(self._runtime, "cudaGetLastError"):
            self._runtime.cudaGetLastError()
            return
        try:  # PyTorch reads the last error, and so clears it, after every launch
            torch.zeros(1, device=self._device)
        except RuntimeError:
            torch.zeros(1, device=self._device)


@dataclass(eq=False)
class HostBuffer:
    """tensor: uint8 [nbytes] at the start of a page. pinned: the device copies directly from it, asynchronously.

    pages: the mapping that holds the tensor; None if it is empty.
    """

    tensor: Tensor
    pages: mmap.mmap | None
    pinned: bool = field(default=False, init=False)

    def leave_out_of_forks(self, leave_out: bool) -> None:
        """Leave these pages out of forks of this process, or put them back in, if the system supports it."""
        if self.pages is None or not hasattr(mmap, "MADV_DONTFORK"):
            return
        with suppress(OSError):
            self.pages.madvise(mmap.MADV_DONTFORK if leave_out else mmap.MADV_DOFORK)
        (_not_in_forks.add if leave_out else _not_in_forks.discard)(self)


_not_in_forks: WeakSet[HostBuffer] = WeakSet()


def _keep_in_fork() -> None:
    """In a fork, never unmap pages that it does not have: other memory may be mapped at those addresses by then."""
    for buffer in _not_in_forks:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer.pages))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_fork)


class HostMemory:
    """Hands out host buffers, counts pinned bytes and frees everything at once.

    pinning: None without a device to pin for. limit: most bytes to pin; None: until pinning is refused.
    Buffers are pinned after they are filled: locking pages that threads have touched in parallel is much faster than
    locking pages that the system first has to clear one by one. Room under the limit is reserved in the order of
    allocation, so that what is pinned does not depend on which buffer is filled first.
    """

    def __init__(self, pinning: CudaPinning | None = None, limit: int | None = None):
        self._pinning, self._room = pinning, limit
        self._lock = threading.Lock()
        self._set_aside: set[HostBuffer] = set()
        self._pinned: set[HostBuffer] = set()
        self._refused = False

    @property
    def pinned_bytes(self) -> int:
        """Bytes pinned at the moment, in whole pages."""
        with self._lock:
            return sum(map(_mapped_bytes, self._pinned))

    def allocate(self, nbytes: int) -> HostBuffer:
        """A zeroed buffer, whose pages are committed when first written to. Raises MemoryError."""
        buffer = HostBuffer(*_map(nbytes))
        with self._lock:
            if self._pinning is not None and nbytes and (self._room is None or _mapped_bytes(buffer) <= self._room):
                self._set_aside.add(buffer)
                self._room = None if self._room is None else self._room - _mapped_bytes(buffer)
        return buffer

    def pin(self, buffer: HostBuffer) -> None:
        """Pin the buffer, if room was reserved for it. After one refused request nothing more is pinned."""
        with self._lock:
            if buffer not in self._set_aside or self._refused:
                return
            self._set_aside.remove(buffer)
        assert self._pinning is not None
        buffer.leave_out_of_forks(True)
        granted = self._pinning.register(buffer.tensor.data_ptr(), _mapped_bytes(buffer))
        if not granted:
            buffer.leave_out_of_forks(False)
        with self._lock:
            if granted:
                self._pinned.add(buffer)
            self._refused |= not granted
            buffer.pinned = granted

    def free(self, buffer: HostBuffer) -> None:
        """Unpin the buffer; its memory is freed with its last reference. No copy may be in progress."""
        with self._lock:
            granted, mapped = buffer in self._pinned, _mapped_bytes(buffer)
            if self._room is not None and (granted or buffer in self._set_aside):
                self._room += mapped
            self._pinned.discard(buffer)
            self._set_aside.discard(buffer)
            buffer.pinned = False
        if granted:
            assert self._pinning is not None
            self._pinning.unregister(buffer.tensor.data_ptr())
            buffer.leave_out_of_forks(False)

    def close(self) -> None:
        """Free all pinned buffers; the others are freed with their last references."""
        while self._pinned:
            self.free(next(iter(self._pinned)))
        self._set_aside.clear()


def allocate(nbytes: int) -> Tensor:
    """Zeroed host memory, uint8 [nbytes], page-aligned, in huge pages if they are granted.

    Raises MemoryError if the system refuses.
    """
    return _map(nbytes)[0]


def _map(nbytes: int) -> tuple[Tensor, mmap.mmap | None]:
    """(the memory, its mapping)."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8), None
    try:
        memory = aligned_memory(nbytes)
    except OSError as error:  # mmap raises this where malloc would return NULL
        raise MemoryError(f"{nbytes:,} bytes of host memory were refused: {error.strerror}") from error
    return torch.frombuffer(memory, dtype=torch.uint8)[:nbytes], cast(mmap.mmap, memory.obj)


def host_memory_for(device: torch.device, limit: int | None) -> HostMemory:
    """Host memory, pinned for `device` if it is a GPU, up to `limit` bytes."""
    return HostMemory(CudaPinning(device) if device.type == "cuda" else None, limit)


def _mapped_bytes(buffer: HostBuffer) -> int:
    return round_up(len(buffer.tensor))
