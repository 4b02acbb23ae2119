"""One block of a text on disk: a safetensors file with its tokens, the KV rows of every layer, and a checksum.

    tokens      I64 [n]
    keys.L      [heads, n, head_dim] of the cache's layer L, in the cache's dtype; values.L likewise. In 8 bits: I8, and
                their scales, key_scales.L and value_scales.L [heads, n, 1]
    checksum    U32 [1], the CRC-32 of the file's name and of all bytes of the tensors before it

What others may have written is read with distrust: the file must be a regular one, its header exactly that of a block
of this model, and tokens and rows those that its name and its checksum stand for.
"""

import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from loaders.cache_directory import replacing
from loaders.errors import OffloadError
from loaders.safetensors_files.headers import FIRST_BYTES, StoredTensor, header_bytes, parse_header
from loaders.safetensors_files.shards import described, header
from loaders.safetensors_files.writer import DTYPE_NAMES
from offload_runtime.prompt_cache.blocks import MOST_TOKENS, Block

Tables = Mapping[str, Tensor]
"""Rows ``[heads, n, head_dim]`` by the name of their tensor; of a whole cache, or of one block."""

MOST_HEADER_BYTES = 1 << 20  # a model of 128 layers has 25 kB
ROW_DTYPES = {**DTYPE_NAMES, torch.int8: "I8"}
TOKENS, CHECKSUM = "tokens", "checksum"
_TOKEN_BYTES, _CHECKSUM_BYTES = 8, 4


class Refused(ValueError):
    """A file is not the block that its name says."""


@dataclass(frozen=True)
class _Opened:
    """An open file whose header is right. tensors: in the order of their bytes."""

    stream: BinaryIO
    tensors: Sequence[StoredTensor]

    @property
    def data_begin(self) -> int:
        return self.tensors[0].offset

    @property
    def count(self) -> int:
        return self.tensors[0].shape[0]


def nbytes(tables: Tables, count: int) -> int:
    """The bytes of a block of `count` tokens, but for its header."""
    return _TOKEN_BYTES * count + _CHECKSUM_BYTES + count * row_bytes(tables)


def row_bytes(tables: Tables) -> int:
    """The bytes of one token's rows."""
    return sum(table.shape[0] * table.shape[2] * table.element_size() for table in tables.values())


def can_be_stored(tables: Tables) -> bool:
    """Whether safetensors has a name for the dtype of every table."""
    return all(table.dtype in ROW_DTYPES for table in tables.values())


def write_block(path: Path, block: Block, rows: Tables) -> None:
    """Write the rows of a block, on the host, as a whole or not at all. Raises OSError."""
    tensors = _tensors(rows, len(block.tokens))
    tokens = memoryview(np.array(block.tokens, "<i8").tobytes())
    parts = [tokens, *(_bytes_of(rows[one.name]) for one in tensors[1:-1])]
    checksum = _checksum(path, parts)
    with replacing(path) as file:
        file.write(header(tensors))
        for part in parts:
            file.write(part)
        file.write(checksum)


def read_tokens(path: Path, tables: Tables) -> tuple[int, ...]:
    """The tokens of a block. Raises OSError, and Refused unless the file's header and its tokens are right."""
    with _opened(path, tables) as opened:
        opened.stream.seek(opened.data_begin)
        return _checked_tokens(path, opened.stream.read(_TOKEN_BYTES * opened.count))


def read_rows(path: Path, tables: Tables) -> Tables:
    """The rows of a block, on the host. Raises OSError, and Refused unless all of the file is right."""
    with _opened(path, tables) as opened:
        content = bytearray(nbytes(tables, opened.count))
        opened.stream.seek(opened.data_begin)
        if opened.stream.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise Refused("it ends early")
    tensors, begin = opened.tensors, opened.data_begin
    whole = memoryview(content)
    _checked_tokens(path, whole[: tensors[0].nbytes])
    if _checksum(path, [whole[:-_CHECKSUM_BYTES]]) != whole[-_CHECKSUM_BYTES:]:
        raise Refused("its content is not what its checksum says")
    rows = {}
    for one in tensors[1:-1]:
        flat = torch.frombuffer(content, dtype=torch.uint8, count=one.nbytes, offset=one.offset - begin)
        rows[one.name] = flat.view(tables[one.name].dtype).view(one.shape)
    return rows


@contextmanager
def _opened(path: Path, tables: Tables) -> Iterator[_Opened]:
    """The file, once its header is found to be that of a block for these tables."""
    # never follows a link, never waits for the other end of a FIFO
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is not a regular file")
        if status.st_size > MOST_HEADER_BYTES + nbytes(tables, MOST_TOKENS):
            raise Refused("it is larger than any block")
        start = stream.read(FIRST_BYTES)
        try:
            length = header_bytes(path, start, status.st_size)
            if length > MOST_HEADER_BYTES:
                raise Refused("its header is larger than any block's")
            text = start[8 : 8 + length] + stream.read(max(8 + length - len(start), 0))
            found = parse_header(path, text, status.st_size)
        except OffloadError as error:
            raise Refused("its header cannot be read, or does not fit the file") from error
        yield _Opened(stream, _checked_tensors(found, tables))


def _checked_tensors(found: Mapping[str, StoredTensor], tables: Tables) -> list[StoredTensor]:
    """The tensors of a file, in order; no others than `_tensors` would have written."""
    shape = found[TOKENS].shape if TOKENS in found else ()
    if len(shape) != 1 or not 0 < shape[0] <= MOST_TOKENS:
        raise Refused("its header is none of a block")
    in_order = sorted(found.values(), key=lambda one: one.offset)
    expected = _tensors(tables, shape[0])
    if [(one.name, one.dtype, one.shape) for one in in_order] != [(one.name, one.dtype, one.shape) for one in expected]:
        raise Refused("its rows are those of another model")
    return in_order


def _tensors(tables: Tables, count: int) -> list[StoredTensor]:
    """The tensors of a block of `count` tokens, in the order of their bytes: the widest first, so all are aligned."""
    rows = [
        described(name, ROW_DTYPES[table.dtype], (table.shape[0], count, table.shape[2]))
        for name, table in sorted(tables.items(), key=lambda item: -item[1].element_size())
    ]
    return [described(TOKENS, "I64", (count,)), *rows, described(CHECKSUM, "U32", (1,))]


def _checked_tokens(path: Path, content: bytes | memoryview) -> tuple[int, ...]:
    tokens = tuple(np.frombuffer(content, "<i8").tolist())
    if Block(path.name.partition("-")[0], 0, tokens).file_name != path.name:
        raise Refused("its tokens are not those that its name stands for")
    return tokens


def _checksum(path: Path, parts: Sequence[memoryview]) -> bytes:
    value = zlib.crc32(path.name.encode())
    for part in parts:
        value = zlib.crc32(part, value)
    return value.to_bytes(_CHECKSUM_BYTES, "little")


def _bytes_of(rows: Tensor) -> memoryview:
    return rows.contiguous().view(-1).view(torch.uint8).numpy().data
