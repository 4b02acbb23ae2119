"""Reads SentencePiece's vocabulary file, `tokenizer.model`, as data, before a tokenizer is built from it.

Imports no torch. The file is a protocol buffer; sentencepiece provides its schema, protobuf the parser.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from loaders.errors import ModelFilesError

FILE = "tokenizer.model"
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
_LEAF = 1 << 31
_MOST_BYTES = 256 << 20  # the largest published ones have 5 MB


def is_sentencepiece_alone(directory: Path | str) -> bool:
    """Whether SentencePiece's own file is the only source of the vocabulary, as with Llama 2 and Vicuna."""
    directory = Path(directory)
    return (directory / FILE).is_file() and not (directory / "tokenizer.json").is_file()


def read_sentencepiece(file: Path) -> Any:
    """The ModelProto in `file`: `pieces` by id, `trainer_spec`, `normalizer_spec`.

    Raises ModelFilesError for any other file, and if the packages that read it are missing.
    """
    try:
        from google.protobuf.message import DecodeError

        description: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # the class is created at run time
    except ImportError as error:
        raise ModelFilesError(
            f"{file.parent}: it has a {FILE} and no tokenizer.json, and to read that takes sentencepiece and protobuf "
            f"({error}).\n"
            "  pip install --upgrade sentencepiece protobuf   or copy a tokenizer.json of the same model there"
        ) from error
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise _no_model(file, f"{file.stat().st_size:,} bytes are more than any has")
        model = description.ModelProto.FromString(file.read_bytes())
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    except DecodeError as error:
        raise _no_model(file, "it is cut off or of another format") from error
    pieces = {piece.piece for piece in model.pieces}
    if not pieces or len(pieces) < len(model.pieces):
        raise _no_model(file, "it holds a piece twice" if pieces else "it holds no pieces")
    if not model.HasField("trainer_spec"):
        raise _no_model(file, "it is cut off behind its pieces")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise _no_model(file, "it is neither of the unigram nor of the BPE kind")
    if not 0 <= model.trainer_spec.unk_id < len(model.pieces):
        raise _no_model(file, "its unknown token is none of its pieces")
    if not can_be_looked_up(model.normalizer_spec.precompiled_charsmap):
        raise _no_model(file, "its table of characters leads out of itself")
    return model


def can_be_looked_up(table: bytes) -> bool:
    """Whether every lookup in this replacement table stays inside it; otherwise `tokenizers` would crash.

    Layout: the trie's length in bytes, the trie, and the zero-terminated replacements. A trie node is 4 bytes: the byte
    that leads to it, whether a replacement ends there, and the number to xor with its index to reach its leaf; xor with
    the next byte then gives the next node. The highest bit marks leaves, which hold a replacement's offset.
    """
    if not table:
        return True
    nbytes = int.from_bytes(table[:4], "little")
    if not nbytes or nbytes % 4 or nbytes > len(table) - 4:
        return False
    units = np.frombuffer(table, "<u4", nbytes // 4, 4).astype(np.int64)
    replacements = np.frombuffer(table, np.uint8, offset=4 + nbytes)
    nodes = np.flatnonzero(units < _LEAF)
    leaves = nodes ^ (units[nodes] >> 10 << ((units[nodes] & 1 << 9) >> 6))
    if units[0] >= _LEAF or (leaves | 0xFF).max() >= len(units):
        return False
    begins = units[leaves[units[nodes] & 1 << 8 > 0]] % _LEAF
    if np.any(begins >= len(replacements)):
        return False
    return not np.any(replacements[begins] & 0xC0 == 0x80)  # within a character


def _no_model(file: Path, why: str) -> ModelFilesError:
    return ModelFilesError(
        f"{file}: it is no SentencePiece model that can be used: {why}. "
        "Download it again, or copy a tokenizer.json of the same model there."
    )
