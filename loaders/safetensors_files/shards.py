"""Lays out safetensors files before they are written. No torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.safetensors_files.headers import STORED_ITEMSIZE, StoredTensor
from loaders.sizes import format_size

SHARD_BYTES = 5_000_000_000
TENSOR_ALIGNMENT = 8  # libraries view tensors in place, so each should start at a multiple of its itemsize


def described(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor without an offset yet; dtype is safetensors' name."""
    return StoredTensor(name, Path(), dtype, shape, 0, math.prod(shape) * STORED_ITEMSIZE[dtype])


def lay_out(
    tensors: Iterable[StoredTensor], directory: Path, shard_bytes: int = SHARD_BYTES
) -> dict[Path, list[StoredTensor]]:
    """Give each tensor its file and offset: one file, or several of about `shard_bytes`, in the order given.

    Within a file, tensors that would misalign the following ones come last, the widest items first.
    """
    shards = _shards(tensors, shard_bytes)
    return {directory / name: _placed(shard, directory / name) for name, shard in zip(_names(len(shards)), shards)}


def header(shard: Sequence[StoredTensor]) -> bytes:
    """The length and the JSON that begin a safetensors file, padded so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in shard:
        end = begin + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % TENSOR_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_index(directory: Path, shards: dict[Path, list[StoredTensor]]) -> None:
    """Write the index of several files; a single file needs none."""
    if len(shards) > 1:
        weight_map = {tensor.name: file.name for file, shard in shards.items() for tensor in shard}
        total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def check_space(directory: Path, needed: int, advice: str) -> None:
    """Raise ModelFilesError, which ends in `advice`, unless the disk of `directory` has `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelFilesError(
            f"{directory}: {format_size(needed)} are needed, but {format_size(free)} are free on its disk. {advice}"
        )


def _shards(tensors: Iterable[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    """Split the tensors, in order, into files of at most about `shard_bytes`."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _placed(shard: list[StoredTensor], file: Path) -> list[StoredTensor]:
    ordered = sorted(shard, key=_raggedness)
    offset, placed = len(header(ordered)), []
    for tensor in ordered:
        placed.append(replace(tensor, file=file, offset=offset))
        offset += tensor.nbytes
    return placed


def _raggedness(tensor: StoredTensor) -> int:
    return 0 if tensor.nbytes % TENSOR_ALIGNMENT == 0 else TENSOR_ALIGNMENT + 1 - STORED_ITEMSIZE[tensor.dtype]
