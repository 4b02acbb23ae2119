"""SentencePiece tokenizers from GGUF metadata: pieces with scores, with a mark for the space.

The file lists no merges: any two pieces that form a third are merged, highest score first, as in llama.cpp
(src/llama-vocab.cpp). A space is added at the start of the text and after each special token, even before another
space, unless `tokenizer.ggml.add_space_prefix` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from loaders.errors import ModelFilesError

SPACE = "▁"


def sentencepiece_tokenizer(file: Path, values: Mapping[str, Any], is_gemma: bool) -> Tokenizer:
    """Build it from the metadata "tokens", "scores", "unk_token_id" and "add_prefix_space".

    Gemma's add no space before a text, store runs of spaces unmarked, and merge in the order of ids instead of
    scores. Raises ModelFilesError if scores are missing, and what `tokenizers` raises.
    """
    tokens: list[str] = values["tokens"]
    scores: Sequence[float] = values.get("scores") or ()
    if is_gemma:
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
        scores = range(0, -len(tokens), -1)
    if len(scores) != len(tokens):
        raise ModelFilesError(f"{file}: it has {len(tokens)} tokens, but {len(scores)} in tokenizer.ggml.scores.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[values.get("unk_token_id", 0)]
    model = BPE(vocabulary, _merges(vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    begins = values.get("add_prefix_space", not is_gemma)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if begins else spaces
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if begins else steps)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that form a third; equal scores are ordered as in transformers."""
    pairs = [
        (-scores[index], -cut, cut - len(token), token[:cut], token[cut:])
        for token, index in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    pairs.sort(key=lambda pair: pair[:3])
    return [(first, second) for *_, first, second in pairs]
