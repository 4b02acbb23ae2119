"""Safetensors headers: which tensors a directory holds and where their bytes lie. No weights are read, no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import INDEX, SINGLE_FILE, broken_link, foreign_content, remedy, weights_found
from loaders.json_files import parse_object, read_json
from loaders.message_text import quoted
from loaders.text_part import used_names
from loaders.unchanged import kept_while_unchanged

if TYPE_CHECKING:
    from loaders.adapters.adapter import Adapter

STORED_ITEMSIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_FILE_NAME = 255  # bytes, on all systems
MAX_NAME, MAX_DIMENSIONS = 512, 16  # the longest published names have 100 characters; torch has at most 64 dimensions
FIRST_BYTES = 64  # enough to recognize a foreign file


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk; `offset` is absolute in `file`, `dtype` is safetensors' name for it ("BF16", "F32", ...)."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def renamed(self, name_of: Callable[[str], str]) -> StoredTensor:
        """This tensor under the name that `name_of` gives for its own."""
        return replace(self, name=name_of(self.name))


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model directory by name.

    absent: tensors that the index places in a file which lacks them, by name. An error only if one is needed.
    adapter: what is merged into the tensors while they are read.
    """

    directory: Path
    tensors: Mapping[str, StoredTensor]
    absent: Mapping[str, Path] = field(default_factory=dict)
    adapter: Adapter | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        replaced = self.adapter.replaced if self.adapter else {}
        return tuple(sorted({tensor.file for tensor in (*self.tensors.values(), *replaced.values())}))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_checkpoint(directory: Path | str) -> Checkpoint:
    """Read the headers of `model.safetensors`, or of every shard that `model.safetensors.index.json` names.

    Every offset, size, shape and dtype a file states is checked against the file's size, so reads by these numbers
    stay inside the file. Raises ModelFilesError naming the file and the tensor.
    """
    directory = Path(directory)
    weight_map = _weight_map(directory)
    shards = _shards(weight_map)
    if absent := [shard for shard in shards if not (directory / shard).is_file()]:
        if link := broken_link(directory / absent[0]):
            raise ModelFilesError(link)
        raise ModelFilesError(
            f"{directory}: {len(absent)} of {len(shards)} weight files are missing ({_some(absent)}). "
            "Download the model again; files that are already complete are kept."
        )
    return assemble(directory, weight_map, {shard: read_header(directory / shard) for shard in shards})


def has_all_weights(directory: Path) -> bool:
    """Whether every weight file is there; of a model that is not downloaded yet only the index may be."""
    try:
        return all((directory / shard).is_file() for shard in _shards(_weight_map(directory)))
    except ModelFilesError:
        return False


def assemble(
    directory: Path, weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, StoredTensor]]
) -> Checkpoint:
    """All tensors that are used, each from the file where `weight_map` places it; `headers` is keyed by file name.

    A misplaced tensor comes from the only file that holds it, as in transformers; ModelFilesError if several do.
    """
    is_used = used_names(directory)
    headers = {shard: {name: header[name] for name in header if is_used(name)} for shard, header in headers.items()}
    tensors: dict[str, StoredTensor] = {}
    for shard, header in headers.items():
        tensors |= {name: tensor for name, tensor in header.items() if weight_map.get(name, shard) == shard}
    lost = sorted(weight_map.keys() - tensors.keys())
    for name in lost:
        held = [header[name] for header in headers.values() if name in header]
        if len(held) > 1:
            raise ModelFilesError(
                f"{directory / weight_map[name]}: the index places {name} here, but {len(held)} other files hold it."
            )
        tensors.update((tensor.name, tensor) for tensor in held)
    absent = {name: directory / weight_map[name] for name in lost if name not in tensors}
    return Checkpoint(directory, tensors, absent)


@kept_while_unchanged(lambda file: (file,))
def read_header(file: Path) -> Mapping[str, StoredTensor]:
    """The tensors of one safetensors file by name, checked; raises ModelFilesError."""
    with _readable(file), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(FIRST_BYTES)
        length = header_bytes(file, start, size)
        text = start[8 : 8 + length] + stream.read(max(8 + length - len(start), 0))
    return parse_header(file, text, size)


def header_bytes(file: Path, start: bytes, size: int) -> int:
    """The length of the header after the first 8 bytes, for a file of `size` bytes that begins with `start`.

    Raises ModelFilesError.
    """
    if other := foreign_content(start):
        raise ModelFilesError(f"{file}: {other}.")
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise _damaged(file, f"the header needs {length} bytes, the file has {max(size - 8, 0)} after its first 8")
    return length


def parse_header(file: Path, text: bytes, size: int) -> dict[str, StoredTensor]:
    """The tensors in the header `text` of a file of `size` bytes, all checked; `file` need not be there."""
    try:
        header = parse_object(text, unique_names=True)
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, "its __metadata__ are not texts by name")
    tensors = {name: _stored_tensor(file, name, entry, 8 + len(text)) for name, entry in header.items()}
    _check_extents(file, tensors.values(), 8 + len(text), size)
    return tensors


def read_tensor_bytes(tensor: StoredTensor) -> bytes:
    """The bytes of a small tensor; raises ModelFilesError."""
    return read_bytes(tensor, 0, tensor.nbytes)


def read_bytes(tensor: StoredTensor, start: int, nbytes: int) -> bytes:
    """A part of a tensor's bytes; raises ModelFilesError."""
    with _readable(tensor.file), tensor.file.open("rb") as stream:
        stream.seek(tensor.offset + start)
        content = stream.read(nbytes)
    if len(content) != nbytes:
        raise _damaged(tensor.file, f"{tensor.name} ends early")
    return content


def _weight_map(directory: Path) -> dict[str, str]:
    """Tensor name to shard name, from the index; empty for a model in one file, which wins over an index."""
    if (directory / SINGLE_FILE).is_file():
        return {}
    if not (directory / INDEX).is_file():
        raise ModelFilesError(_no_weights(directory))
    return read_weight_map(directory / INDEX)


def _shards(weight_map: Mapping[str, str]) -> list[str]:
    return sorted(set(weight_map.values())) or [SINGLE_FILE]


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name, a path below the index's directory, of all tensors that are used.

    Raises ModelFilesError.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "it has no `weight_map`")
    for name, shard in weight_map.items():
        _check_name(index, name)
        if not isinstance(shard, str) or not is_plain_path(shard):
            raise _damaged(index, f"it places {name} in {quoted(shard)}, which is not a file name in this directory")
    is_used = used_names(index.parent)
    return {name: shard for name, shard in weight_map.items() if is_used(name)}


def is_plain_path(name: str) -> bool:
    """Whether this is a relative path that stays below the directory and has no characters that need escaping."""
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or len(name) > MAX_NAME:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= MAX_FILE_NAME for part in parts)


def no_such_directory(directory: Path) -> str:
    """The message where a directory holds no model."""
    return (
        f"{directory}: no such file or directory, nor a name to look for on the hub. Give the directory of a model "
        "(config.json and *.safetensors files), a .gguf file, or a name as org/name, org/name@revision or "
        "org/name:Q4_K_M for one of its GGUF files."
    )


def _no_weights(directory: Path) -> str:
    if not directory.is_dir():
        return no_such_directory(directory)
    names = [file.name for file in directory.iterdir()]
    if link := broken_link(directory / SINGLE_FILE) or broken_link(directory / INDEX):
        return link
    found = weights_found(names)
    advice = f"It holds {found}. {remedy(names) or ''}" if found else "Download the model again."
    return f"{directory}: neither model.safetensors nor model.safetensors.index.json is there. {advice}".rstrip()


def _check_name(file: Path, name: str) -> None:
    """Check a tensor name, which becomes part of messages and module paths."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise _damaged(file, f"it names a tensor {quoted(name)!r}, with {len(name):,} characters")


def _stored_tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    _check_name(file, name)
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [begin, end, *shape] if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [-1]
        well_typed = isinstance(dtype, str) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    except (KeyError, TypeError, ValueError):
        well_typed = False
    if not well_typed:
        raise _damaged(file, f"the header entry of {name} is no dtype, shape and two offsets: {quoted(entry, 200)}")
    if dtype not in STORED_ITEMSIZE:
        raise UnsupportedModelError(f"{file}: {name} is stored as {dtype[:40]!r}; this dtype is not supported.")
    nbytes = math.prod(shape) * STORED_ITEMSIZE[dtype]
    if end - begin != nbytes:
        raise _damaged(file, f"{name} is {dtype} {shape} and needs {nbytes} bytes, but its offsets span {end - begin}")
    return StoredTensor(name, file, dtype, tuple(shape), data_start + begin, nbytes)


def _check_extents(file: Path, tensors: Iterable[StoredTensor], data_start: int, size: int) -> None:
    """Check the format's rule: tensors follow each other without gaps or overlaps up to the end of the file."""
    end, before = data_start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            fault = "overlaps" if tensor.offset < end else "leaves a gap after"
            raise _damaged(file, f"{tensor.name} at byte {tensor.offset} {fault} {before}, which ends at {end}")
        end, before = end + tensor.nbytes, tensor.name
    if end != size:
        fault = "truncated" if end > size else "too long"
        raise _damaged(file, f"it is {fault}: its tensors need {end} bytes, the file has {size}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error


def _damaged(file: Path, fault: str) -> ModelFilesError:
    return ModelFilesError(f"{file}: {fault}. The file is damaged or incomplete; download it again.")


def _some(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
