"""Tokenizers from local files, and the check that draft and target mean the same tokens by the same ids."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loaders.errors import ModelFilesError, OffloadError
from loaders.gguf.model import is_gguf, read_gguf_cached
from loaders.gguf.tokenizer import gguf_tokenizer, has_gguf_tokenizer
from loaders.needed_files import VOCABULARY_FILES
from loaders.vocabulary import check_same_vocabulary


def has_tokenizer(directory: str | Path) -> bool:
    """Whether the checkpoint in `directory`, or the GGUF file, comes with a tokenizer."""
    if is_gguf(directory):
        return has_gguf_tokenizer(read_gguf_cached(directory))
    return any((Path(directory) / name).is_file() for name in VOCABULARY_FILES)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`, or in a GGUF file, without network and without running code from there.

    Raises ModelFilesError if its files are missing or cannot be read.
    """
    directory = Path(directory)
    if not has_tokenizer(directory):
        if is_gguf(directory):
            raise ModelFilesError(f"{directory}: it holds no tokenizer. Use token ids instead of text.")
        raise ModelFilesError(
            f"{directory}: no tokenizer. One of {', '.join(VOCABULARY_FILES)} is needed, none is there: "
            "copy the tokenizer's files beside the weights, or use token ids instead of text."
        )
    _check_sentencepiece(directory)
    try:
        if is_gguf(directory):
            return gguf_tokenizer(read_gguf_cached(directory))
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except OffloadError:
        raise
    except Exception as error:  # damaged files raise whatever the parsers meet: KeyError, JSON errors, bare Exception
        raise ModelFilesError(f"{directory}: the tokenizer cannot be loaded: {_first_line(error)}") from error


def _check_sentencepiece(directory: Path) -> None:
    """Old checkpoints (Llama 2, Vicuna) may hold sentencepiece's own file alone, which takes its library to read."""
    if not (directory / "tokenizer.model").is_file() or (directory / "tokenizer.json").is_file():
        return
    if missing := [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]:
        packages = " ".join(name.removeprefix("google.") for name in missing)
        raise ModelFilesError(
            f"{directory}: it has a tokenizer.model and no tokenizer.json, and {packages} is needed to read that.\n"
            f"  pip install {packages}   or copy a tokenizer.json of the same model there"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that `module` would be in
        return False


def check_same_tokens(
    target: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    target_vocab_size: int,
    draft_vocab_size: int,
) -> None:
    """`check_same_vocabulary` for loaded tokenizers and the rows of their models' embeddings."""
    check_same_vocabulary(target.get_vocab(), draft.get_vocab(), target_vocab_size, draft_vocab_size)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
