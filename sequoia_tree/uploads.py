"""From the host to a device that is at work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[np.generic] | Sequence[int], device: torch.device) -> Tensor:
    """`values` on `device`, int64 if they are a list. The host does not wait for what the device has been given to do.

    A copy out of pageable memory would wait, so it goes through pinned memory, which PyTorch keeps and reuses.
    """
    tensor = torch.from_numpy(np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
