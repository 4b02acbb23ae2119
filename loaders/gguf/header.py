"""Reads and checks the headers of GGUF files, without reading a weight.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header holds the whole vocabulary, so it is not
turned into Python objects: skipping 400,000 strings takes 0.1 s, where the `gguf` package's reader takes 11 s.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import check_content
from loaders.gguf.content import DISK, Content
from loaders.gguf.names import split_names
from loaders.gguf.placement import Part, RowOrder, Whole
from loaders.gguf.types import BLOCKS, READABLE, TYPE_NAMES, VALUES
from loaders.message_text import quoted
from loaders.safetensors_files.headers import StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
MAX_HEADER_BYTES = 1 << 28  # the largest published ones have 20 MB
MAX_KEY_BYTES, MAX_NAME_BYTES = (1 << 16) - 1, 255  # the format's own limits; ggml's for tensors is 63
MAX_DIMENSIONS = 4

STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor as stored: a quantized one is "U8" [..., bytes of a row]. `values` is its dequantized shape.

    What dequantizing has to undo: in `paired_heads` heads the first row is followed by the middle one, the second by
    the one after the middle, and so on; `less` has been added to all values; of `negated_log`, the negative exponential
    is stored; of the columns, heads in groups of `tiles` are stored as in `RowOrder`. part: where the values belong if
    they are not a whole weight as it is stored.
    """

    kind: str = ""  # ggml's name: "Q4_K"
    values: tuple[int, ...] = ()
    paired_heads: int = 0
    less: float = 0.0
    negated_log: bool = False
    tiles: int = 0
    groups: int = 0
    part: Part | None = None

    @property
    def is_packed(self) -> bool:
        """Whether it has to be dequantized before use."""
        changed = self.paired_heads > 0 or self.less != 0 or self.negated_log or self.tiles > 0
        return changed or self.kind not in VALUES or self.part is not None

    def named(self, name: str, negated_log: bool = False, shape: tuple[int, ...] = ()) -> GgufTensor:
        """This tensor under the model's name for it. shape: of floats, another way to count the same values."""
        found = replace(self, name=name, negated_log=negated_log)
        return replace(found, shape=shape, values=shape) if shape and self.kind in VALUES else found

    def part_of(self, whole: Whole, role: str, placement: RowOrder) -> GgufTensor:
        """This tensor as a part of a weight, in which no other part has this role."""
        return replace(self, name=f"{whole.name}.{role}", part=Part(whole, placement))

    def renamed(self, name_of: Callable[[str], str]) -> GgufTensor:
        """This tensor, and the weight that it is a part of, under the names that `name_of` gives for their own."""
        part = self.part and replace(self.part, whole=replace(self.part.whole, name=name_of(self.part.whole.name)))
        return replace(self, name=name_of(self.name), part=part)

    def item(self, index: int) -> GgufTensor:
        """A matrix of a stack, or a row of a matrix. Raises ModelFilesError if it has not so many."""
        found = self.rows(index, index + 1)
        return replace(found, shape=found.shape[1:], values=found.values[1:])

    def rows(self, begin: int, end: int) -> GgufTensor:
        """Rows [begin, end) of a matrix. Raises ModelFilesError if it has not so many."""
        if not 0 <= begin <= end <= self.values[0]:
            raise ModelFilesError(
                f"{self.file}: {self.name} has {self.values[0]} rows, but by the metadata it must have {end}. The file "
                "is damaged; download it again."
            )
        row = self.nbytes // self.values[0]
        shape, values = ((end - begin, *sizes[1:]) for sizes in (self.shape, self.values))
        return replace(self, shape=shape, values=values, offset=self.offset + begin * row, nbytes=(end - begin) * row)


@dataclass(frozen=True)
class GgufArray:
    """A metadata array, left in the file: the type and number of its items, their offset, and their bytes."""

    file: Path
    item_type: int
    count: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A model: all its files, the metadata, and the tensors by GGUF's names.

    content: reads the files, which need not be on disk.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    content: Content = field(default=DISK, repr=False)

    @property
    def file(self) -> Path:
        return self.files[0]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `key`. Raises ModelFilesError if it is absent without a default, or not of this `kind`."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelFilesError(f"{self.file}: its metadata lack {key}. Is this a language model's file?")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is not default and type(value) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ModelFilesError(f"{self.file}: {key} is {quoted(value)}, but must be {names}.")
        return value

    def bytes_of(self, tensor: GgufTensor) -> bytes:
        """The bytes of a small tensor; raises ModelFilesError."""
        return self.content.read(tensor.file, tensor.offset, tensor.offset + tensor.nbytes)

    def items(self, array: GgufArray) -> list[Any]:
        """The items of an array: numbers, or strings. Raises ModelFilesError."""
        content = self.content.read(array.file, array.offset, array.offset + array.nbytes)
        if array.item_type != STRING:
            return list(struct.unpack_from(f"<{array.count}{NUMBERS[array.item_type]}", content))
        strings, position = [], 0
        for _ in range(array.count):
            begin = position + LENGTH.size
            position = begin + LENGTH.unpack_from(content, position)[0]
            strings.append(content[begin:position])
        try:
            return [string.decode() for string in strings]
        except UnicodeDecodeError as error:
            raise _damaged(array.file, f"its metadata hold text that is no UTF-8 ({error.reason})") from error


def read_gguf(file: Path | str, content: Content = DISK) -> GgufFile:
    """Read the header of a file, or of all files of a split model, whichever of them is named.

    Every count, length, offset and shape is checked against the file's size, so reads by these numbers stay inside
    the file. Raises ModelFilesError naming the file and the key or tensor, and UnsupportedModelError for tensor
    types and format versions that cannot be read.
    """
    files = _splits(Path(file), content)
    metadata, tensors = _read_one(files[0], content)
    count = metadata.get("split.count", 1)
    if (count or 1) != len(files):
        raise ModelFilesError(
            f"{files[0]}: it is one of {quoted(count)} files, but its name says {len(files)}. "
            "Give the files back the names they were downloaded by: …-00001-of-0000N.gguf."
        )
    for number, other in enumerate(files[1:], start=1):
        more_metadata, more = _read_one(other, content)
        if more_metadata.get("split.no", number) != number:
            raise _damaged(other, f"split.no is {quoted(more_metadata['split.no'])}, but its name says {number}")
        if twice := tensors.keys() & more.keys():
            raise _damaged(other, f"{min(twice)} is in another of the files too")
        tensors |= more
    total = metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise _damaged(files[0], f"the files hold {len(tensors)} tensors, but should hold {quoted(total)}")
    return GgufFile(files, metadata, tensors, content)


def _splits(file: Path, content: Content) -> tuple[Path, ...]:
    """All files of the model that `file` belongs to, by their names."""
    files = tuple(file.with_name(name) for name in split_names(file.name))
    if not files:
        raise ModelFilesError(f"{file}: a model in so many files, or in none, cannot be.")
    if absent := [other for other in files if not content.has(other)]:
        raise ModelFilesError(
            f"{file}: {len(absent)} of the {len(files)} files of this model are missing, the first is "
            f"{absent[0].name}. Download them into the same directory."
        )
    return files


def _read_one(file: Path, content: Content) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Read a file until its whole header is there; every read at least doubles the size of the last."""
    size = content.size(file)
    if size == 0:
        raise _damaged(file, "it is empty")
    start, wanted = b"", content.first_bytes(file)
    while True:
        start += content.read(file, len(start), min(wanted, size, MAX_HEADER_BYTES))
        try:
            metadata, tensors = _parse(_Cursor(file, start, size))
        except _MoreIsNeeded:
            wanted = 2 * len(start)
            continue
        if content.is_local:
            _check_padding(content, tensors.values(), size)
        return metadata, tensors


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    file = cursor.file
    if cursor.take(4, "the first bytes") != MAGIC:
        check_content(file)
        raise ModelFilesError(f"{file}: this is no GGUF file: it does not begin with “GGUF”.")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        order = " (or its bytes are in big-endian order)" if version & 0xFFFF == 0 else ""
        raise UnsupportedModelError(f"{file}: GGUF version {version}{order}; versions 2 and 3 can be read.")
    tensor_count, key_count = cursor.number("Q", "a count"), cursor.number("Q", "a count")
    metadata = _read_metadata(cursor, key_count)
    return metadata, _read_tensors(cursor, tensor_count, metadata)


class _MoreIsNeeded(Exception):
    """The header is longer than what was read of the file."""


class _Cursor:
    """Steps through the header of a file of `size` bytes, of which `content` is the start.

    Every step is checked to stay within the file and within MAX_HEADER_BYTES; one that leaves `content` raises
    _MoreIsNeeded.
    """

    def __init__(self, file: Path, content: bytes, size: int):
        self.file, self.content, self.size = file, content, size
        self.end = min(size, MAX_HEADER_BYTES)
        self.position = 0

    def step(self, nbytes: int, what: str) -> int:
        """The offset of the next `nbytes`; moves the cursor past them."""
        begin = self.position
        if nbytes > self.end - begin:
            raise _damaged(
                self.file,
                f"{what} at byte {begin} needs {nbytes} bytes, but the header can have {self.end - begin} more",
            )
        if nbytes > len(self.content) - begin:
            raise _MoreIsNeeded
        self.position = begin + nbytes
        return begin

    def take(self, nbytes: int, what: str) -> bytes:
        begin = self.step(nbytes, what)
        return self.content[begin : begin + nbytes]

    def number(self, code: str, what: str) -> Any:
        begin = self.step(struct.calcsize(f"<{code}"), what)
        return struct.unpack_from(f"<{code}", self.content, begin)[0]

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q", what)
        if length > most:
            raise _damaged(self.file, f"{what} at byte {self.position} is {length} bytes long, more than {most}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise _damaged(self.file, f"{what} at byte {self.position} is no UTF-8 ({error.reason})") from error

    def array(self, what: str) -> GgufArray:
        item_type, count = self.number("I", what), self.number("Q", what)
        begin = self.position
        if item_type in NUMBERS:
            self.step(count * struct.calcsize(NUMBERS[item_type]), what)
        elif item_type == STRING:
            self._step_over_strings(count, what)
        else:
            raise _damaged(self.file, f"{what} is an array of items of type {item_type}, which cannot be")
        return GgufArray(self.file, item_type, count, begin, self.position - begin)

    def _step_over_strings(self, count: int, what: str) -> None:
        """A separate loop: nearly all the time is spent here."""
        position, unpack, content = self.position, LENGTH.unpack_from, self.content
        last = min(self.end, len(content)) - LENGTH.size
        for number in range(count):
            if position > last:
                if position <= self.end - LENGTH.size:
                    raise _MoreIsNeeded
                raise _damaged(self.file, f"{what} should hold {count} strings, but the header ends after {number}")
            position += LENGTH.size + unpack(content, position)[0]
        self.step(position - self.position, what)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY_BYTES)
        if key in metadata:
            raise _damaged(cursor.file, f"it has {quoted(key)} twice")
        metadata[key] = _read_value(cursor, quoted(key))
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("I", key)
    if kind == STRING:
        return cursor.text(key)
    if kind == ARRAY:
        return cursor.array(key)
    if kind not in NUMBERS:
        raise _damaged(cursor.file, f"{key} has a value of type {kind}, which cannot be")
    return cursor.number(NUMBERS[kind], key)


def _read_tensors(cursor: _Cursor, count: int, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Offsets count from the end of the header, rounded up to the alignment."""
    file = cursor.file
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _damaged(file, f"general.alignment is {quoted(alignment)}, but must be a power of two")
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.text("a tensor's name", MAX_NAME_BYTES)
        if name in described or not name.isprintable():
            raise _damaged(file, f"it has the tensor {quoted(name)} twice, or that is no name")
        dimensions = cursor.number("I", name)
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise _damaged(file, f"{quoted(name)} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q", name) for _ in range(dimensions))[::-1]
        described[name] = shape, cursor.number("I", name), cursor.number("Q", name)
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: _tensor(file, name, *described[name], start, alignment) for name in described}
    _check_extents(file, list(tensors.values()), start, alignment, cursor.size)
    return tensors


def _tensor(
    file: Path, name: str, shape: tuple[int, ...], kind_number: int, offset: int, start: int, alignment: int
) -> GgufTensor:
    kind = TYPE_NAMES.get(kind_number, f"type {kind_number}")
    if kind not in BLOCKS and kind not in VALUES:
        raise UnsupportedModelError(
            f"{file}: {quoted(name)} is stored as {kind}, which cannot be decoded. {', '.join(READABLE)} can: look "
            "for a file in those."
        )
    if 0 in shape or offset % alignment:
        raise _damaged(file, f"{quoted(name)} has shape {list(shape)} at offset {offset}, which cannot be")
    per_block, block_bytes = BLOCKS.get(kind, (1, 0))
    block_bytes, dtype = VALUES.get(kind, (block_bytes, "U8"))
    if shape[-1] % per_block:
        raise _damaged(file, f"{quoted(name)} has rows of {shape[-1]} values, no whole number of blocks of {per_block}")
    row = shape[-1] // per_block * block_bytes
    stored = shape if kind in VALUES else (*shape[:-1], row)
    return GgufTensor(name, file, dtype, stored, start + offset, math.prod(shape[:-1]) * row, kind, shape)


def _check_extents(file: Path, tensors: list[GgufTensor], start: int, alignment: int, size: int) -> None:
    """ggml's rule: tensors follow in header order, each at the next multiple of the alignment.

    So a wrong type, shape or offset shows at the next tensor, or at the end of the file for the last one.
    """
    end = place = start
    before = "the header"
    for tensor in tensors:
        if tensor.offset != place:
            fault = "overlaps" if tensor.offset < end else "does not follow"
            raise _damaged(
                file, f"{quoted(tensor.name)} at byte {tensor.offset} {fault} {before}, behind which is byte {place}"
            )
        end, before = tensor.offset + tensor.nbytes, quoted(tensor.name)
        place = end + -end % alignment
    if tensors and not end <= size <= place:
        fault = "truncated" if end > size else "too long"
        raise _damaged(file, f"it is {fault}: its tensors need {end} bytes, the file has {size}")


def _check_padding(content: Content, tensors: Iterable[GgufTensor], size: int) -> None:
    """Padding between tensors must be zero: otherwise a tensor was longer than stated. Few files have padding."""
    places = [(tensor.offset + tensor.nbytes, tensor) for tensor in tensors]
    for (end, tensor), next_place in zip(places, [*(tensor.offset for _, tensor in places[1:]), size]):
        if end < next_place and any(content.read(tensor.file, end, next_place)):
            raise _damaged(tensor.file, f"{quoted(tensor.name)} ends at byte {end}, but there are values behind it")


def _damaged(file: Path, fault: str) -> ModelFilesError:
    return ModelFilesError(f"{file}: {fault}. The file is damaged or incomplete; download it again.")
