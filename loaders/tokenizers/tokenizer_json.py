"""Builds a tokenizer from tokenizer.json, exactly as that file defines it.

transformers builds the classes that tokenizer_config.json names (LlamaTokenizer, Qwen2Tokenizer, ...) from the file's
vocabulary alone, and replaces its normalizer, splitting rule and flags of added tokens by those of the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loaders.errors import ModelFilesError
from loaders.json_files import read_json

FILE = "tokenizer.json"
_NAMED_BY_ID = ("bos", "eos", "pad")  # special tokens whose ids config.json states


def tokenizer_from_json(directory: Path) -> PreTrainedTokenizerBase:
    """Encodes as `tokenizers.Tokenizer.from_file` does, plus what tokenizer_config.json adds.

    Raises ModelFilesError if the tokenizer is code in the repository, and what transformers raises.
    """
    config = _config(directory, "tokenizer_config.json")
    check_is_no_code(directory, config)
    added: dict[str, Any] = {}
    if stated := config.get("added_tokens_decoder"):
        added["added_tokens_decoder"] = _added_tokens(stated, read_json(directory / FILE).get("added_tokens") or ())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True, **added)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    _name_special_tokens(tokenizer, _config(directory, "config.json"))
    return tokenizer


def check_is_no_code(directory: Path, config: dict[str, Any]) -> None:
    """Raise ModelFilesError if auto_map names code for a tokenizer class that transformers lacks."""
    name = str(config.get("tokenizer_class") or "")
    known = any(getattr(transformers, known, None) for known in (name, name.removesuffix("Fast")) if known)
    if config.get("auto_map") and not known:
        raise tokenizer_is_code(directory)


def tokenizer_is_code(directory: Path) -> ModelFilesError:
    """The message for a tokenizer_config.json whose auto_map names a class that transformers lacks."""
    return ModelFilesError(
        f"{directory}: its tokenizer is a program in the repository, which is never run. If the model has a copy that "
        "works without, use that; if its tokenizer.json is all there is to it, remove auto_map from "
        "tokenizer_config.json."
    )


def _name_special_tokens(tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]) -> None:
    """Name special tokens by config.json's ids where no file does: chat templates use them."""
    for name in _NAMED_BY_ID:
        index = config.get(f"{name}_token_id")
        if getattr(tokenizer, f"{name}_token") is None and type(index) is int and 0 <= index < len(tokenizer):
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(index))


def _added_tokens(
    configured: Mapping[str, Mapping[str, Any]], stated: Iterable[Mapping[str, Any]]
) -> dict[int, AddedToken]:
    """Added tokens by id: those of tokenizer.json with its flags, and those only in tokenizer_config.json."""
    tokens = {token["id"]: _added_token(token) for token in stated}
    contents = {token.content for token in tokens.values()}
    further = {int(index): _added_token(token) for index, token in configured.items()}
    return {index: token for index, token in further.items() if token.content not in contents} | tokens


def _added_token(stated: Mapping[str, Any]) -> AddedToken:
    flags = {name: stated[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in stated}
    return AddedToken(stated["content"], special=bool(stated.get("special")), **flags)


def _config(directory: Path, name: str) -> dict[str, Any]:
    return read_json(directory / name) if (directory / name).is_file() else {}
