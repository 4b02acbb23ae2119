"""The forms in which KV rows are stored: as the model computes them, or in 8 bits.

In 8 bits, each head's part of a row, ``x [head_dim]``, is stored as whole numbers ``round(x / s)`` from -127 to 127 and
their scale ``s = max |x| / 127`` in the compute dtype (symmetric "absmax" quantization, as of blocks of weights in
Q8_0). A pass stores its own rows first and attends to what is stored, its own rows included; so a row is the same
whether a prompt or the node of a tree wrote it, and whatever memory it has come from. With as many bits, E4M3 numbers
lose two to four times as much of the distribution (docs/measured.md).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offload_runtime.model.cached_rows.travelling_rows import Tables

LARGEST_CODE = 127


class RowForm:
    """How keys and values ``[1, heads, rows, head_dim]`` are stored in tables: here, as the model computes them."""

    def stored(self, keys: Tensor, values: Tensor) -> Tables:
        """The rows as they are stored."""
        return {"keys": keys, "values": values}

    def read(self, tables: Tables, spans: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, valid until the next read; rows outside of `spans` may be any finite numbers."""
        return tables["keys"], tables["values"]

    def free(self) -> None:
        """Free the memory that rows are read through."""


class RowsIn8Bits(RowForm):
    """Rows are stored in 8 bits. For attention they are dequantized to memory that all layers share.

    most: rows of a table. on_allocate: called with the bytes of that memory.
    """

    def __init__(self, most: int, on_allocate: Callable[[int], None]):
        self._most, self._on_allocate = most, on_allocate
        self._memory: Tensor | None = None

    def stored(self, keys: Tensor, values: Tensor) -> Tables:
        """Codes like the rows, int8, and scales ``[1, heads, rows, 1]``."""
        (key_codes, key_scales), (value_codes, value_scales) = quantized(keys), quantized(values)
        return {"keys": key_codes, "key_scales": key_scales, "values": value_codes, "value_scales": value_scales}

    def read(self, tables: Tables, spans: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """The rows, those of `spans` dequantized. Allocates nothing once every layer was read."""
        keys, values = self._room(tables["keys"], tables["values"], tables["key_scales"].dtype)
        for rows, name in ((keys, "key"), (values, "value")):
            codes, scales = tables[f"{name}s"], tables[f"{name}_scales"]
            for span in spans:
                rows[:, :, span].copy_(codes[:, :, span]).mul_(scales[:, :, span])
        return keys, values

    def _room(self, keys: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Memory for the rows of these codes; as much as all rows of the largest layer need, even if few are read: a
        CUDA graph goes on using memory that was there when it was captured.

        Zeroed: attention may multiply rows that were never written by a weight of 0, and 0 × NaN would be NaN.
        """
        needed, held = keys.numel() + values.numel(), 0 if self._memory is None else len(self._memory)
        if self._memory is None or held < needed:
            most = needed // keys.shape[2] * self._most
            self._memory = torch.zeros(most, dtype=dtype, device=keys.device)
            self._on_allocate((most - held) * dtype.itemsize)
        of_keys, rest = self._memory[: keys.numel()], self._memory[keys.numel() : needed]
        return of_keys.view(keys.shape), rest.view(values.shape)

    def free(self) -> None:
        """Free the memory for dequantized rows."""
        self._memory = None


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[..., head_dim]``, int8, and scales ``[..., 1]`` in the dtype of `rows`.

    Codes are computed, in float32, from the scale that is stored. A row that is not finite gets a scale that is not.
    """
    largest, numbers = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True), torch.finfo(rows.dtype)
    scales = (largest.float() / LARGEST_CODE).to(rows.dtype).clamp_(min=numbers.tiny * numbers.eps)  # rows may be 0
    return (rows / scales.float()).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), scales
