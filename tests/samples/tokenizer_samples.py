"""Small tokenizers of each kind that language models use, made on the spot: no download."""

from collections.abc import Callable
from copy import copy
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loaders.checkpoint.model_source import load_tokenizer
from tests.samples.sentencepiece_samples import trained, write_repository

WORDS = ["hello world", "Grüße aus Köln", "привет мир", "你好世界 😀😁", "Once upon a time"] * 20
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def byte_level() -> PreTrainedTokenizerBase:
    """GPT-2, Llama 3, Qwen: a character may be split over several tokens, a token may hold parts of two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return _wrapped(tokenizer)


@cache
def metaspace() -> PreTrainedTokenizerBase:
    """Llama 2, Mistral, Gemma: sentencepiece's pieces with a mark for spaces, byte tokens for what is not in them."""
    pieces = ["▁", *"helowrdépun", "el", "lo", "▁w"]
    merges = [("e", "l"), ("l", "o"), ("▁", "w")]
    vocabulary = {piece: index for index, piece in enumerate(SPECIAL + BYTES + pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrapped(tokenizer)


@cache
def unigram() -> PreTrainedTokenizerBase:
    """XGLM, T5: sentencepiece's other algorithm."""
    pieces = ["▁", "▁hello", "▁world", "o", "é", "你"]
    scores = [(piece, -3.0) for piece in pieces] + [(piece, -9.0) for piece in BYTES]
    tokenizer = Tokenizer(models.Unigram([(token, 0.0) for token in SPECIAL] + scores, 0, True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrapped(tokenizer)


@cache
def word_piece() -> PreTrainedTokenizerBase:
    """BERT's kind: continuations are marked, spaces are not."""
    words = [*SPECIAL, "hello", "##ing", "wor", "##ld", ".", "你"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return _wrapped(tokenizer)


@cache
def from_sentencepiece(kind: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a repository with SentencePiece's own file alone."""
    with TemporaryDirectory() as directory:
        return load_tokenizer(write_repository(Path(directory), trained(kind)))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )


SAMPLES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "unigram": unigram,
    "word-piece": word_piece,
    "sentencepiece's BPE": partial(from_sentencepiece, "bpe"),
    "sentencepiece's unigram": partial(from_sentencepiece, "unigram"),
}


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    """The same tokens with another chat template, or with none as base models come."""
    changed = copy(tokenizer)
    changed.chat_template = template
    return changed
