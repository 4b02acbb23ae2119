"""Byte-level BPE tokenizers (GPT-2) from GGUF metadata: text is split into pieces, then bytes are merged.

transformers builds such tokenizers too, but silently uses GPT-2's splitting rule for unknown names, which gives other
tokens, and splits special tokens that are not spelled in bytes, such as DeepSeek's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from loaders.errors import UnsupportedModelError
from loaders.message_text import quoted
from loaders.tokenizers.gguf_splitting_rules import COMPOSED, RULES, WHOLE_PIECES


def byte_level_tokenizer(file: Path, values: Mapping[str, Any]) -> Tokenizer:
    """Build it from the metadata "tokens", "merges" and "pre_tokenizer_type".

    Warns if no splitting rule is named. Raises UnsupportedModelError for an unknown name, and what
    `tokenizers` raises.
    """
    name, tokens = values.get("pre_tokenizer_type") or "default", values["tokens"]
    if name not in RULES:
        raise UnsupportedModelError(
            f"{file}: its tokenizer splits text by the rule {name!r:.40}, which is not known here, and by another the "
            "model would read other tokens than it learned. Use the original checkpoint in safetensors instead."
        )
    if name == "default":
        warnings.warn(
            f"{quoted(str(file), 200)}: tokenizer.ggml.pre names no rule for splitting text. llama.cpp's default is "
            "taken; the model may have learned another, and then answers worse. A file that was converted later says "
            "which.",
            stacklevel=2,
        )
    merges = [(first, second) for first, _, second in (merge.partition(" ") for merge in values.get("merges", ()))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=name in WHOLE_PIECES))
    if name in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in RULES[name]]
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
