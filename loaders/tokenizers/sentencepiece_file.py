"""The vocabulary file that SentencePiece writes, `tokenizer.model`: read as data, before anything is built from it.

Imports no torch. The file is a protocol buffer; sentencepiece brings its description, protobuf the reader.
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
    """Whether the vocabulary can only be had from SentencePiece's own file, as with Llama 2's and Vicuna's."""
    directory = Path(directory)
    return (directory / FILE).is_file() and not (directory / "tokenizer.json").is_file()


def read_sentencepiece(file: Path) -> Any:
    """The ModelProto in `file`: `pieces` by id, `trainer_spec`, `normalizer_spec`.

    Raises ModelFilesError for what is no such file, and where the packages that read it are missing.
    """
    try:
        from google.protobuf.message import DecodeError

        description: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # made at run time
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
    """Whether no text leads whoever looks it up in this table of replacements out of it: tokenizers crashes then.

    The bytes of a trie, the trie, and the replacements, each with a zero behind it. A node of the trie is 4 bytes: the
    byte that leads to it, whether a replacement ends there, and what its own number is to be xored with to get to its
    leaf, and from there by a byte to the next node. The highest bit marks leaves, which say where a replacement begins.
    """
    if not table:
        return True
    nbytes = int.from_bytes(table[:4], "little")
    if not nbytes or nbytes % 4 or nbytes > len(table) - 4:
        return False
    layers = np.frombuffer(table, "<u4", nbytes // 4, 4).astype(np.int64)
    replacements = np.frombuffer(table, np.uint8, offset=4 + nbytes)
    nodes = np.flatnonzero(layers < _LEAF)
    leaves = nodes ^ (layers[nodes] >> 10 << ((layers[nodes] & 1 << 9) >> 6))
    if layers[0] >= _LEAF or (leaves | 0xFF).max() >= len(layers):
        return False
    begins = layers[leaves[layers[nodes] & 1 << 8 > 0]] % _LEAF
    if np.any(begins >= len(replacements)):
        return False
    return not np.any(replacements[begins] & 0xC0 == 0x80)  # within a character


def _no_model(file: Path, why: str) -> ModelFilesError:
    return ModelFilesError(
        f"{file}: it is no SentencePiece model that can be used: {why}. "
        "Download it again, or copy a tokenizer.json of the same model there."
    )
