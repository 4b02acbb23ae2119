"""Loads tokenizers from local files, and checks that draft and target share their vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loaders.errors import ModelFilesError, OffloadError
from loaders.foreign_files import check_content
from loaders.hub.needed_files import VOCABULARY_FILES
from loaders.json_files import read_json
from loaders.message_text import first_line
from loaders.tokenizers.chat_templates import chat_template_of
from loaders.tokenizers.sentencepiece_file import is_sentencepiece_alone
from loaders.tokenizers.sentencepiece_tokenizer import sentencepiece_tokenizer
from loaders.tokenizers.tokenizer_json import FILE as JSON
from loaders.tokenizers.tokenizer_json import tokenizer_from_json, tokenizer_is_code
from loaders.tokenizers.trial import check_tokenizer_files, panics_explained
from loaders.tokenizers.vocabulary import check_same_vocabulary


def usable(path: Path, load: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """The tokenizer that `load` builds from a model's files, used once; ModelFilesError if either fails."""
    with _explained(path, "loaded"):
        tokenizer = load()
    with _explained(path, "used"):  # most bad values in tokenizer_config.json fail on first use
        tokenizer.decode(tokenizer("Hello").input_ids)
        tokenizer.get_added_vocab(), tokenizer.all_special_ids, len(tokenizer)
    return tokenizer


def tokenizer_in(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, whose files are first tried in a separate process."""
    for name in VOCABULARY_FILES:
        check_content(directory / name)
    if not any((directory / name).is_file() for name in VOCABULARY_FILES):
        raise ModelFilesError(
            f"{directory}: no tokenizer. One of {', '.join(VOCABULARY_FILES)} is needed, none is there: "
            "copy the tokenizer's files beside the weights, or use token ids instead of text."
        )
    check_tokenizer_files(directory)
    template = chat_template_of(directory)
    tokenizer = _from_directory(directory)
    tokenizer.chat_template = template
    return tokenizer


@contextmanager
def _explained(directory: Path, done: str) -> Iterator[None]:
    """Explain parser errors: damaged files raise KeyError, JSON errors, bare Exception, a panic."""
    try:
        with panics_explained(directory):
            yield
    except OffloadError:
        raise
    except Exception as error:
        raise ModelFilesError(f"{directory}: the tokenizer cannot be {done}: {first_line(error)}") from error


def _from_directory(directory: Path) -> PreTrainedTokenizerBase:
    if (directory / JSON).is_file():
        return tokenizer_from_json(directory)
    if is_sentencepiece_alone(directory) and (tokenizer := sentencepiece_tokenizer(directory)):
        return tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **_of_mistral(directory)
        )
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise tokenizer_is_code(directory) from error
        raise
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _of_mistral(directory: Path) -> dict[str, Any]:
    """Settings that a tekken.json omits: mistral-common, for which it is made, has them built in."""
    if not (directory / "tekken.json").is_file():
        return {}
    file = directory / "tokenizer_config.json"
    stated = read_json(file) if file.is_file() else {}
    known = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return {name: value for name, value in known.items() if name not in stated}


def check_same_tokens(
    target: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    target_vocab_size: int,
    draft_vocab_size: int,
) -> None:
    """`check_same_vocabulary` for loaded tokenizers and the embedding rows of their models."""
    check_same_vocabulary(target.get_vocab(), draft.get_vocab(), target_vocab_size, draft_vocab_size)
