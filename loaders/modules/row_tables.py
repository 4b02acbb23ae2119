"""Embedding tables that stay on disk: of n-grams of tokens (Qwen4-exp, some 90 GB), of which a token needs few rows.

The table takes the place of an `nn.Embedding`, so that it is no part of a layer, neither in memory nor on the link.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loaders.checkpoint.spec import READ_BY_ROWS
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.modules.layout import TORCH_DTYPES
from loaders.safetensors_files.headers import StoredTensor

_SHARD = re.compile(r"\.shard_(\d+)(?=\.weight$)")


class RowTable(nn.Module):
    """Looks rows up by a function that `open` is given: rows int64 [n] to their bytes, uint8 [n, bytes].

    parts: in order. The indices come from the device, so the host waits for it.
    """

    def __init__(self, parts: Sequence[StoredTensor], dtype: torch.dtype):
        super().__init__()
        self.parts, self._stored, self._dtype = parts, TORCH_DTYPES[parts[0].dtype], dtype
        self.weight = torch.empty(0)  # where it lies tells transformers' code where the indices have to be
        self._read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]] | None = None

    def open(self, read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]) -> None:
        """From now on, look rows up by `read`."""
        self._read = read

    def forward(self, indices: Tensor) -> Tensor:
        """Int64 [...] on the CPU; [..., width] in the model's dtype."""
        assert self._read is not None, "the table is not open"
        rows = torch.from_numpy(self._read(indices.reshape(-1).numpy()))
        return rows.view(self._stored).to(self._dtype).view(*indices.shape, -1)


def leave_tables_on_disk(
    model: nn.Module, stored: Mapping[str, StoredTensor], packed: Iterable[str], dtype: torch.dtype
) -> None:
    """Put a `RowTable` in the place of every embedding of n-grams. stored: all tensors of the files by name.

    packed: names of quantized weights. Raises ModelFilesError where the files hold no such table, or another one;
    UnsupportedModelError where it is quantized.
    """
    for name, module in [*model.named_modules()]:
        if not READ_BY_ROWS.search(f"{name}.weight"):
            continue
        assert isinstance(module, nn.Embedding)
        if any(_names(name, of) for of in packed):
            raise UnsupportedModelError(f"{name} is quantized; only tables that are not can be read by rows.")
        parts = sorted((tensor for tensor in stored.values() if _names(name, tensor.name)), key=_number)
        _check(name, module, parts)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, RowTable(parts, dtype))


def _names(module: str, tensor: str) -> bool:
    """Whether a stored tensor is the table of a module or a part of it; prefixes of the whole model differ."""
    of_module, of_tensor = module.partition("layers.")[2], _SHARD.sub("", tensor).partition("layers.")[2]
    return of_tensor == f"{of_module}.weight"


def _number(part: StoredTensor) -> int:
    shard = _SHARD.search(part.name)
    return int(shard[1]) if shard else 0


def _check(name: str, module: nn.Embedding, parts: Sequence[StoredTensor]) -> None:
    shapes = [part.shape for part in parts]
    in_order = [_number(part) for part in parts] == [*range(len(parts))]
    of_its_width = all(shape[1:] == (module.embedding_dim,) for shape in shapes)
    of_one_type = len({part.dtype for part in parts}) == 1 and parts[0].dtype.startswith(("F", "BF"))
    rows = sum(shape[0] for shape in shapes if shape)
    if not (in_order and of_its_width and of_one_type and rows == module.num_embeddings):
        raise ModelFilesError(
            f"{name} must have shape [{module.num_embeddings}, {module.embedding_dim}] by config.json, but the files "
            f"hold {len(parts)} parts of it of shapes {[list(shape) for shape in shapes[:3]]}…. Config and weights are "
            "not of the same model; download both again."
        )
