"""Writes safetensors checkpoints piece by piece: memory never holds more than a piece of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loaders.safetensors_files.shards import SHARD_BYTES, check_space, described, header, lay_out, write_index

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


Values = Callable[[TensorEntry], Iterable[Tensor]]
"""The values of a tensor in order, in contiguous pieces of any shape in the checkpoint's dtype."""


def write_checkpoint(
    directory: Path, entries: Sequence[TensorEntry], dtype: torch.dtype, values: Values, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the tensors to one file, or to several of about `shard_bytes` with an index, in the order given.

    Raises ModelFilesError if the disk is too full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = [described(entry.name, DTYPE_NAMES[dtype], entry.shape) for entry in entries]
    shards = lay_out(tensors, directory, shard_bytes)
    check_space(
        directory,
        sum(tensor.nbytes for tensor in tensors),
        "Choose another directory, or write fewer distinct layers.",
    )
    for path, shard in shards.items():
        with path.open("wb") as file:
            file.write(header(shard))
            for tensor in shard:
                for piece in values(TensorEntry(tensor.name, tensor.shape)):
                    file.write(_bytes_of(piece))
    write_index(directory, shards)


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data
