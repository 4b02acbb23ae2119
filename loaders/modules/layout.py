"""Where each tensor of a layer lies in the layer's one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.checkpoint.spec import aligned

# By safetensors' name.
TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of a layer: name relative to the layer's module, and offset in bytes from the start of the buffer.

    transposed: the buffer holds it with its last two dimensions exchanged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """This tensor as a view of `buffer` (uint8, one dimension)."""
        flat = buffer[self.offset : self.offset + self.nbytes].view(self.dtype)
        if self.transposed:
            *rest, rows, columns = self.shape
            return flat.view(*rest, columns, rows).mT
        return flat.view(self.shape)


@dataclass(frozen=True)
class Layout:
    """The slots of all tensors of a layer; `nbytes` is a multiple of 256.

    Equal layouts compare and hash equal, so layers of one shape can share the views of a buffer.
    """

    places: tuple[TensorPlace, ...]
    nbytes: int

    @classmethod
    def of(
        cls, tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]], transposed: Collection[str] = ()
    ) -> Layout:
        """Lay (name, shape, dtype) out in the given order, each at the next multiple of 256 bytes.

        transposed: names of tensors that the buffer holds with their last two dimensions exchanged.
        """
        places: list[TensorPlace] = []
        end = 0
        for name, shape, dtype in tensors:
            places.append(TensorPlace(name, tuple(shape), dtype, end, name in transposed))
            end = aligned(end + places[-1].nbytes)
        return cls(tuple(places), end)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Every tensor as a view of `buffer` (uint8 [nbytes]), by name; writing to the buffer writes to the views."""
        assert buffer.dtype == torch.uint8 and buffer.shape == (self.nbytes,), (buffer.dtype, buffer.shape)
        return {place.name: place.view(buffer) for place in self.places}
