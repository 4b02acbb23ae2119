"""The tokenizer that a GGUF file's metadata describe."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loaders.errors import ModelFilesError
from loaders.gguf.byte_level import WHOLE_PIECES, byte_level_tokenizer
from loaders.gguf.config import family_of
from loaders.gguf.header import GgufArray, GgufFile

PREFIX = "tokenizer.ggml."
# What transformers calls the values that it builds a tokenizer from.
VALUES = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
    "add_space_prefix": "add_prefix_space",
}
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def gguf_tokenizer(gguf: GgufFile) -> PreTrainedTokenizerBase:
    """Raises ModelFilesError for special tokens that the vocabulary does not hold, and what transformers raises."""
    values = {ours: _value(gguf, key) for key, ours in VALUES.items() if f"{PREFIX}{key}" in gguf.metadata}
    tokens, kind = values["tokens"], values.get("tokenizer_type")
    backend = byte_level_tokenizer(gguf.file, values) if kind == "gpt2" else _sentencepiece(gguf, values)
    begins = kind == "llama" or (kind == "gpt2" and values.get("pre_tokenizer_type") in WHOLE_PIECES)
    template = gguf.metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        add_bos_token=_flag(gguf, "add_bos_token", default=begins),
        add_eos_token=_flag(gguf, "add_eos_token", default=False),
        **{name: _special(gguf, tokens, key) for name, key in SPECIAL.items()},
    )


def _sentencepiece(gguf: GgufFile, values: dict[str, Any]) -> Tokenizer:
    """As transformers makes it; before 5.20 other code does this, which names families as transformers does."""
    convert = getattr(import_module("transformers.integrations.gguf"), "convert_gguf_tokenizer", None)
    if convert:
        backend, _ = convert(gguf.get("general.architecture", str), values)
    else:
        convert = import_module("transformers.integrations.ggml").convert_gguf_tokenizer
        backend, _ = convert(family_of(gguf).model_type, values)
    return _without_more(backend, len(values["tokens"]))


def _without_more(backend: Tokenizer, count: int) -> Tokenizer:
    """Without added tokens that the model has no ids for: before 5.20 those of the published models are added."""
    if backend.get_vocab_size() <= count:
        return backend
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < count]
    return Tokenizer.from_str(json.dumps(state))


def _value(gguf: GgufFile, key: str) -> Any:
    value = gguf.metadata[f"{PREFIX}{key}"]
    return gguf.items(value) if isinstance(value, GgufArray) else value


def _flag(gguf: GgufFile, key: str, default: bool) -> bool:
    flag: bool = gguf.get(f"{PREFIX}{key}", bool, default)
    return flag


def _special(gguf: GgufFile, tokens: list[str], key: str) -> str | None:
    index = gguf.metadata.get(f"{PREFIX}{key}")
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise ModelFilesError(f"{gguf.file}: {PREFIX}{key} is {index!r:.40}, but there are {len(tokens)} tokens.")
    return tokens[index]
