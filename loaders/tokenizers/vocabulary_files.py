"""Which token an id means, read from the tokenizer's files in a directory. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.json_files import read_json
from loaders.tokenizers.sentencepiece_file import FILE, is_sentencepiece_alone, read_sentencepiece


def has_vocabulary_files(directory: Path) -> bool:
    """Whether `read_vocabulary_files` finds what it reads."""
    return (directory / "tokenizer.json").is_file() or is_sentencepiece_alone(directory)


def read_vocabulary_files(directory: Path) -> dict[str, int]:
    """Token to id, added tokens included, from `tokenizer.json` or else `tokenizer.model`; ModelFilesError."""
    file = directory / (FILE if is_sentencepiece_alone(directory) else "tokenizer.json")
    try:
        vocabulary = _from_sentencepiece(file) if file.name == FILE else _from_json(file)
        config = file.with_name("tokenizer_config.json")
        later = read_json(config).get("added_tokens_decoder") if config.is_file() else None
        vocabulary.update((token["content"], int(index)) for index, token in (later or {}).items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(f"{file}: its vocabulary cannot be read ({type(error).__name__}: {error}).") from error
    if not vocabulary or not all(type(index) is int and index >= 0 for index in vocabulary.values()):
        raise ModelFilesError(f"{file}: its vocabulary is empty, or has ids that are none.")
    return vocabulary


def _from_json(file: Path) -> dict[str, int]:
    record = read_json(file)
    model = record.get("model")
    vocabulary = _ids_of(model["vocab"]) if isinstance(model, dict) else {}
    vocabulary.update((token["content"], token["id"]) for token in record.get("added_tokens") or ())
    return vocabulary


def _from_sentencepiece(file: Path) -> dict[str, int]:
    vocabulary = {piece.piece: index for index, piece in enumerate(read_sentencepiece(file).pieces)}
    added = file.with_name("added_tokens.json")
    return vocabulary | (read_json(added) if added.is_file() else {})


def _ids_of(vocab: Any) -> dict[str, int]:
    """A map as most kinds of tokenizers have it, or Unigram's list of [token, score]."""
    return {entry[0]: index for index, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
