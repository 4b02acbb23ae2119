"""Reads a tokenizer's vocabulary from its files, and compares those of two models. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loaders.errors import DraftMismatchError, ModelFilesError
from loaders.json_files import read_json
from loaders.tokenizers.sentencepiece_file import FILE, is_sentencepiece_alone, read_sentencepiece

# Names of reserved ids, some of which later models of a family use: Llama 3's 128004 became
# <|finetune_right_pad_id|> in 3.1. They never occur in text, so like padding they match anything.
PLACEHOLDER = re.compile(
    r"[<\[].*(reserved|unused|control|place.?holder|dummy|extra|special|pad).*\d+\W*[>\]]", re.IGNORECASE
)


def has_vocabulary_files(directory: Path) -> bool:
    """Whether the files for `read_vocabulary_files` exist."""
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
    """The vocabulary of most tokenizers is a map, that of Unigram a list of [token, score]."""
    return {entry[0]: index for index, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)


def check_same_vocabulary(
    target: Mapping[str, int], draft: Mapping[str, int], target_rows: int, draft_rows: int
) -> None:
    """Raise DraftMismatchError, naming the lowest id that differs, unless every id means the same token in both.

    Special and added tokens count, placeholders do not. The rows are those of the models' embeddings, which are often
    padded: a token that only one model knows is fine if the other has an unused row for its id. A token beyond its own
    model's rows is never generated, so it does not count.
    """
    if difference := _first_difference(target, draft, target_rows, draft_rows):
        raise DraftMismatchError(
            f"The draft's tokens are not the target's: {difference}. Pick a draft of the same family, or --draft none."
        )


def _first_difference(
    target: Mapping[str, int], draft: Mapping[str, int], target_rows: int, draft_rows: int
) -> str | None:
    """Describe the mismatch at the lowest id that has one."""
    if target == draft:
        return None
    target_tokens = {index: token for token, index in target.items()}
    draft_tokens = {index: token for token, index in draft.items()}
    for index in sorted(target_tokens.keys() | draft_tokens.keys()):
        ours, theirs = target_tokens.get(index), draft_tokens.get(index)
        if ours == theirs or any(token and PLACEHOLDER.fullmatch(token) for token in (ours, theirs)):
            continue
        ours, theirs = (ours if index < target_rows else None), (theirs if index < draft_rows else None)
        for token in (ours, theirs):
            if token is not None and token in target and token in draft:
                return f"token {token!r} is {target[token]} in the target and {draft[token]} in the draft"
        if ours is not None and theirs is not None:
            return f"id {index} is {ours!r} in the target and {theirs!r} in the draft"
        if ours is not None and index >= draft_rows:
            return f"token {ours!r} is {index} in the target, but the draft has {draft_rows:,} tokens"
        if theirs is not None and index >= target_rows:
            return f"token {theirs!r} is {index} in the draft, but the target has {target_rows:,} tokens"
    return None
