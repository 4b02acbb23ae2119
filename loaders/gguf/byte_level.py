"""Tokenizers of GPT-2's kind from GGUF metadata: merges over bytes, within the pieces that text is split into first.

How text is split is no more than a name in the file, `tokenizer.ggml.pre`. What the names stand for is llama.cpp's
table (src/llama-vocab.cpp), the expressions are those of the published tokenizers. transformers builds such tokenizers
too, but splits by GPT-2's rule for names that it does not know, which gives other tokens without a word, and takes
special tokens apart that are not spelled in bytes, as all of DeepSeek's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from loaders.errors import UnsupportedModelError

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that are found in text before it is split

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_BY_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+", rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"

LLAMA3 = (rf"{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}",)
QWEN2 = (rf"{_WORDS}|\p{{N}}|{_MARKS}[\r\n]*|{_SPACES}",)
SEED_CODER = (rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
TEKKEN = (rf"{'|'.join(_BY_CASE)}|\p{{N}}|{_MARKS}[\r\n/]*|{_SPACES}",)
GPT4O = (rf"{'|'.join(f'{word}{_CONTRACTIONS}?' for word in _BY_CASE)}|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_SPACES}",)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)
# With these, what the expressions leave is split by GPT-2's rule.
GPT2: tuple[str, ...] = ()
DIGITS = (r"\p{N}",)

# In files that name no rule, or "default", it is GPT-2's, as transformers has it.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie"), GPT4O),
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "a.x-4.0", "mellum"), GPT2),
    **dict.fromkeys(("exaone4", "granite-docling", "gigachat"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    "tekken": TEKKEN,
    "seed-coder": SEED_CODER,
    "deepseek-coder": DEEPSEEK_CODER,
    "deepseek-v3": DEEPSEEK_V3,
}
# Files need not say of these that a text begins with a token for that, nor that a piece which is a token as it stands
# is not taken apart.
WHOLE_PIECES = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}


def byte_level_tokenizer(file: Path, values: Mapping[str, Any]) -> Tokenizer:
    """From what the metadata hold under "tokens", "merges", "token_type" and "pre_tokenizer_type".

    Raises UnsupportedModelError for a name of splits that is not known, and what `tokenizers` raises.
    """
    name, tokens = values.get("pre_tokenizer_type", "default"), values["tokens"]
    if name not in SPLITS:
        raise UnsupportedModelError(
            f"{file}: its tokenizer splits text by the rule {name!r:.40}, which is not known here, and by another the "
            "model would read other tokens than it learned. Use the original checkpoint in safetensors instead."
        )
    merges = [(first, second) for first, _, second in (merge.partition(" ") for merge in values.get("merges", ()))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=name in WHOLE_PIECES))
    if SPLITS[name] is QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_splits(SPLITS[name]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_found_first(tokens, values.get("token_type", ())))
    return tokenizer


def _splits(expressions: tuple[str, ...]) -> list[Any]:
    steps: list[Any] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    by_gpt2 = expressions in (GPT2, DIGITS)
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_gpt2)]


def _found_first(tokens: Sequence[str], kinds: Sequence[int]) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    ]
