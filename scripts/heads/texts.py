"""The text that a head is trained on, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_READ = 1 << 20  # characters of plain text that are tokenized at once


def tokens_of(files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, most: int) -> Tensor:
    """int32 [tokens], at most `most`: lines of `.jsonl` files are conversations, other files are plain text.

    A conversation is a list of messages, or an object that holds one as "messages"; the chat template writes it.
    """
    pieces: list[Tensor] = []
    count = 0
    for file in files:
        for text in _conversations(file, tokenizer) if file.suffix == ".jsonl" else _plain(file):
            pieces.append(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int32))
            count += len(pieces[-1])
            if count >= most:
                return torch.cat(pieces)[:most]
    return torch.cat(pieces)


def frequent_tokens(tokens: Tensor, count: int, vocab_size: int) -> Tensor:
    """int64 [count], ascending: the tokens that occur most often, those that do not occur by their number."""
    occurrences = torch.bincount(tokens.long(), minlength=vocab_size)
    return occurrences.argsort(descending=True, stable=True)[:count].sort().values


def _plain(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as stream:
        while text := stream.read(_READ):
            yield text + stream.readline()


def _conversations(file: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    with file.open(encoding="utf-8") as stream:
        for line in filter(str.strip, stream):
            value = json.loads(line)
            messages = value["messages"] if isinstance(value, dict) else value
            yield str(tokenizer.apply_chat_template(messages, tokenize=False))
