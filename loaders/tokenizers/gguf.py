"""Builds the tokenizer that a GGUF file's metadata describe."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loaders.errors import ModelFilesError
from loaders.gguf.families.known import family_of
from loaders.gguf.header import GgufArray, GgufFile
from loaders.tokenizers.chat_templates import gguf_chat_template
from loaders.tokenizers.gguf_byte_level import byte_level_tokenizer
from loaders.tokenizers.gguf_sentencepiece import sentencepiece_tokenizer
from loaders.tokenizers.gguf_splitting_rules import BEGUN
from loaders.tokenizers.gguf_token_kinds import found_first, warn_of_split_marks

PREFIX = "tokenizer.ggml."
# transformers' names of the values that it builds a tokenizer from.
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


# Defaults where a file of this kind does not name them.
SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
# Phi-3's other tokens swallow the whitespace after them, including its chat template's line breaks.
PHI3_KEEPS_SPACES = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def gguf_tokenizer(gguf: GgufFile) -> PreTrainedTokenizerBase:
    """Raises ModelFilesError for special tokens missing from the vocabulary, and what transformers raises.

    Warns where the file leaves something open, so that tokens may differ from those the model was trained on.
    """
    values = {ours: _value(gguf, key) for key, ours in VALUES.items() if f"{PREFIX}{key}" in gguf.metadata}
    tokens, kinds, kind = values["tokens"], values.get("token_type", ()), values.get("tokenizer_type")
    template = gguf_chat_template(gguf.metadata)
    defaults = SENTENCEPIECE_IDS if kind == "llama" else {}
    special = {name: _special(gguf, tokens, key, defaults.get(key)) for name, key in SPECIAL.items()}
    backend = _backend(gguf, values)
    architecture = gguf.get("general.architecture", str)
    is_phi3 = kind == "llama" and architecture == "phi3"
    backend.add_tokens(found_first(tokens, kinds, PHI3_KEEPS_SPACES if is_phi3 else None))
    warn_of_split_marks(gguf.file, backend.get_vocab(), kinds, template or "")
    begins = kind == "llama" or (kind == "gpt2" and values.get("pre_tokenizer_type") in BEGUN)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        add_bos_token=_flag(gguf, "add_bos_token", default=begins),
        add_eos_token=_flag(gguf, "add_eos_token", default=False),
        **special,
    )


def _backend(gguf: GgufFile, values: dict[str, Any]) -> Tokenizer:
    kind = values.get("tokenizer_type")
    if kind == "gpt2":
        return byte_level_tokenizer(gguf.file, values)
    if kind == "llama":
        is_gemma = gguf.get("general.architecture", str).startswith("gemma")
        return sentencepiece_tokenizer(gguf.file, values, is_gemma)
    return _by_transformers(gguf, values)


def _by_transformers(gguf: GgufFile, values: dict[str, Any]) -> Tokenizer:
    """Built by transformers; before 5.20 by its older code, which uses transformers' names of families."""
    convert = getattr(import_module("transformers.integrations.gguf"), "convert_gguf_tokenizer", None)
    if convert:
        backend, _ = convert(gguf.get("general.architecture", str), values)
    else:
        convert = import_module("transformers.integrations.ggml").convert_gguf_tokenizer
        backend, _ = convert(family_of(gguf).model_type, values)
    return _without_more(backend, len(values["tokens"]))


def _without_more(backend: Tokenizer, count: int) -> Tokenizer:
    """Remove added tokens that the model has no ids for; before 5.20 transformers adds those of published models."""
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


def _special(gguf: GgufFile, tokens: list[str], key: str, default: int | None) -> str | None:
    index = gguf.metadata.get(f"{PREFIX}{key}", default if default is not None and default < len(tokens) else None)
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise ModelFilesError(f"{gguf.file}: {PREFIX}{key} is {index!r:.40}, but there are {len(tokens)} tokens.")
    return tokens[index]
