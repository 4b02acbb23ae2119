"""Tokenizers from local files, and the check that draft and target mean the same tokens by the same ids."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loaders.errors import DraftMismatchError, ModelFilesError, OffloadError
from loaders.gguf.model import is_gguf, read_gguf_cached
from loaders.gguf.tokenizer import gguf_tokenizer, has_gguf_tokenizer

# One of these holds the vocabulary, whatever the kind of tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


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
    try:
        if is_gguf(directory):
            return gguf_tokenizer(read_gguf_cached(directory))
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except OffloadError:
        raise
    except Exception as error:  # damaged files raise whatever the parsers meet: KeyError, JSON errors, bare Exception
        raise ModelFilesError(f"{directory}: the tokenizer cannot be loaded: {_first_line(error)}") from error


def check_same_tokens(
    target: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    target_vocab_size: int,
    draft_vocab_size: int,
) -> None:
    """Raise DraftMismatchError, naming the difference of lowest id, unless both mean the same token by every id.

    Special and added tokens count like all others. The vocabulary sizes are the models' embedding rows, which are often
    padded: a token that only one of the two knows is fine where the other has an unused row for its id.
    """
    difference = _first_difference(target.get_vocab(), draft.get_vocab(), target_vocab_size, draft_vocab_size)
    if difference:
        raise DraftMismatchError(
            f"The draft's tokens are not the target's: {difference}. Pick a draft of the same family, or --draft none."
        )


def _first_difference(target: dict[str, int], draft: dict[str, int], target_rows: int, draft_rows: int) -> str | None:
    """What is wrong at the lowest id at which something is."""
    target_tokens = {index: token for token, index in target.items()}
    draft_tokens = {index: token for token, index in draft.items()}
    for index in sorted(target_tokens.keys() | draft_tokens.keys()):
        ours, theirs = target_tokens.get(index), draft_tokens.get(index)
        if ours == theirs:
            continue
        for token in (ours, theirs):
            if token in target and token in draft:
                return f"token {token!r} is {target[token]} in the target and {draft[token]} in the draft"
        if ours is not None and theirs is not None:
            return f"id {index} is {ours!r} in the target and {theirs!r} in the draft"
        if index >= draft_rows:
            return f"token {ours!r} is {index} in the target, but the draft has {draft_rows:,} tokens"
        if index >= target_rows:
            return f"token {theirs!r} is {index} in the draft, but the target has {target_rows:,} tokens"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
