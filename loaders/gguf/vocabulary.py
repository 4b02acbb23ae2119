"""The tokens that a GGUF file lists, by their ids. No torch."""

from __future__ import annotations

from collections.abc import Collection

from loaders.errors import ModelFilesError
from loaders.gguf.header import STRING, GgufArray, GgufFile

TOKENS = "tokenizer.ggml.tokens"
MESSAGE_END = "<|end|>"
_REPLY_ENDS = (("<|return|>", "<|call|>"), ("<|flush|>", "<|calls|>"))


def has_gguf_vocabulary(gguf: GgufFile) -> bool:
    """Whether the file lists its tokens."""
    tokens = gguf.metadata.get(TOKENS)
    return isinstance(tokens, GgufArray) and tokens.item_type == STRING


def gguf_vocabulary(gguf: GgufFile) -> dict[str, int]:
    """Token to id; the first id of a token listed twice. Raises ModelFilesError if there is no list."""
    if not has_gguf_vocabulary(gguf):
        raise ModelFilesError(f"{gguf.file}: its metadata list no tokens.")
    tokens = gguf.items(gguf.metadata[TOKENS])
    return {token: index for index, token in reversed([*enumerate(tokens)])}


def replies_in_messages(tokens: Collection[str]) -> bool:
    """Whether a reply has several messages, so that end-of-message does not end it: gpt-oss, Solar Open."""
    return any(first in tokens and second in tokens for first, second in _REPLY_ENDS)
