"""Writes safetensors checkpoints tensor by tensor: never more than a piece of one tensor is in memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loaders.errors import ModelFilesError

SHARD_BYTES = 5_000_000_000
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
    shards = _shards(entries, dtype.itemsize, shard_bytes)
    _check_space(directory, sum(entry.count for entry in entries) * dtype.itemsize)
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards):
        with (directory / name).open("wb") as file:
            file.write(_header(shard, dtype))
            for entry in shard:
                for piece in values(entry):
                    file.write(_bytes_of(piece))
    if len(shards) > 1:
        _write_index(directory, names, shards, dtype.itemsize)


def _shards(entries: Iterable[TensorEntry], itemsize: int, shard_bytes: int) -> list[list[TensorEntry]]:
    """The tensors in order, a new file begun where the last one would grow beyond `shard_bytes`."""
    shards: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in entries:
        nbytes = entry.count * itemsize
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _header(shard: list[TensorEntry], dtype: torch.dtype) -> bytes:
    """The length and the JSON that begin a safetensors file, padded so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in shard:
        end = begin + entry.count * dtype.itemsize
        entries[entry.name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data


def _write_index(directory: Path, names: list[str], shards: list[list[TensorEntry]], itemsize: int) -> None:
    weight_map = {entry.name: name for name, shard in zip(names, shards) for entry in shard}
    total = sum(entry.count for shard in shards for entry in shard) * itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelFilesError(
            f"{directory}: {needed / 1e9:.1f} GB are needed, but {free / 1e9:.1f} GB are free on its disk. "
            "Choose another directory, or write fewer distinct layers."
        )
