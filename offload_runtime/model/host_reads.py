"""Finds operations that make the host wait for the device: they stall the loop, and CUDA graphs cannot hold them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loaders.modules.dense_experts import grouped_products_wait

_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_MASKS = (torch.bool, torch.uint8)
_COPYING = {torch.ops.aten._to_copy, torch.ops.aten.copy_}
_GROUPED = torch.ops.aten._grouped_mm
_FALLBACK = "grouped_mm_fallback"  # transformers' own loop over experts, for GPUs before capability 8
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostRead(RuntimeError):
    """The host needs the result of an operation, or its shape."""


class no_host_reads(TorchDispatchMode):  # used as a function
    """Within the block, this thread's operations raise HostRead if the host would wait for a GPU; on any device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _reads(function, args):
            raise HostRead(f"{function} has the host wait for the device")
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in _COPYING and len({x.device for x in (*args, out) if isinstance(x, Tensor)}) > 1:
            raise HostRead(f"{function} copies between host and device")
        return out


def _reads(function: Any, args: tuple[Any, ...]) -> bool:
    if function.overloadpacket in _INDEXING:  # the shape is known for integer indices, not for masks
        return any(index is not None and index.dtype in _MASKS for index in args[1])
    if function.overloadpacket == _GROUPED:
        return grouped_products_wait(args[0].device, args[0].dtype)
    return _FALLBACK in function.name() or not _READS.isdisjoint(function.tags)
