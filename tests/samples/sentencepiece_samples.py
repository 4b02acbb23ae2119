"""Repositories with SentencePiece's own file alone, as in Llama 2's time: trained on the spot, no download."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizerBase

from loaders.checkpoint.model_source import load_tokenizer

TEXTS = [
    *("hello world", "Grüße aus Köln", "привет мир", "你好世界", "Once upon a time there was a cat"),
    *("  two  spaces here", "the cat sat on the mat 12345", "def f(x):    return x", "one\ntwo"),
] * 20


@cache
def trained(kind: str, **options: Any) -> bytes:
    """The file's content; kind: "bpe" as Llama's, or "unigram". No piece for many letters: bytes stand for those."""
    content = io.BytesIO()
    llama = {
        "byte_fallback": True,
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "vocab_size": 380,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(TEXTS), model_writer=content, model_type=kind, num_threads=1, **{**llama, **options}
    )
    return content.getvalue()


def special(content: str) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False}


# Vicuna 1.5's tokenizer_config.json.
CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": special("<s>"),
    "clean_up_tokenization_spaces": False,
    "eos_token": special("</s>"),
    "legacy": False,
    "model_max_length": 4096,
    "pad_token": None,
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": special("<unk>"),
}


def write_repository(
    directory: Path, content: bytes, model_type: str = "llama", config: dict[str, Any] | None = CONFIG
) -> Path:
    """The files of a tokenizer; config: what tokenizer_config.json holds, None for none."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(content)
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 512}))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def splitter(content: bytes) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself."""
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def with_json(source: Path, target: Path) -> PreTrainedTokenizerBase:
    """Save the tokenizer in `source` as its tokenizer.json."""
    tokenizer = load_tokenizer(source)
    tokenizer.save_pretrained(target)
    assert (target / "tokenizer.json").is_file()
    return tokenizer
