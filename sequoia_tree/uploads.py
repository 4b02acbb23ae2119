"""Uploads from the host to a busy device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Sizes of a step's uploads: from a few token ids up to the mask of a tree of 1,024 nodes. PyTorch allocates pinned
# memory in powers of two.
RESERVED_BYTES = [1 << power for power in range(21)]
RESERVED_OF_EACH = 4


def upload(values: NDArray[np.generic] | Sequence[int], device: torch.device) -> Tensor:
    """`values` on `device`, int64 if they are a list. The host does not wait for work queued on the device.

    A copy from pageable memory would wait, so it goes through pinned memory, which PyTorch caches. If no more can be
    pinned, it waits.
    """
    tensor = torch.from_numpy(np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64))
    return _pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def upload_together(arrays: Sequence[NDArray[np.int64] | NDArray[np.bool_]], device: torch.device) -> list[Tensor]:
    """Arrays on `device`, in their shapes, by one copy: every copy may have to wait for its turn on the link."""
    order = sorted(
        range(len(arrays)), key=lambda number: arrays[number].dtype == np.bool_
    )  # so that numbers lie aligned
    packed = upload(np.concatenate([arrays[number].ravel().view(np.uint8) for number in order]), device)
    parts = dict(zip(order, packed.split([arrays[number].nbytes for number in order])))
    dtypes = [torch.bool if array.dtype == np.bool_ else torch.int64 for array in arrays]
    return [parts[number].view(dtypes[number]).view(array.shape) for number, array in enumerate(arrays)]


def reserve_uploads(device: torch.device) -> None:
    """Have PyTorch pin 8 MiB for a step's uploads before layers use up what the system can pin (WSL2)."""
    if device.type == "cuda":
        blocks = [torch.empty(nbytes, dtype=torch.uint8) for nbytes in RESERVED_BYTES for _ in range(RESERVED_OF_EACH)]
        pinned = [_pinned(block) for block in blocks]  # all at once, or PyTorch would reuse one block
        del pinned


def _pinned(tensor: Tensor) -> Tensor:
    """A pinned copy; the tensor itself if pinning is refused."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
