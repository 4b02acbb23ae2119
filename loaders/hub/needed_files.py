"""Which of a repository's files a run needs: a pure function of their names. No network, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import ADAPTER_CONFIG, INDEX, SINGLE_FILE, broken_link, remedy, weights_found
from loaders.formats.side_files import SIDE_FILES

GENERATION_CONFIG = "generation_config.json"

# One of these holds the vocabulary, whatever the kind of tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
# What `vocabulary` reads.
TOKEN_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")

# Files beside the weights, all small. None of them is code: what a repository would want to run stays there.
_SMALL_FILES = {
    *("config.json", GENERATION_CONFIG, "acceptance.json"),
    *SIDE_FILES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
    *VOCABULARY_FILES,
}
_CHAT_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")


def check_small_files(directory: Path) -> None:
    """Raise ModelFilesError where something else lies in the place of a file that a run reads where it is there.

    A link that leads nowhere, as an unfinished download leaves it, or a directory would count as no file: the model
    would run, and sample or spell its prompts by other rules than its own.
    """
    for name in sorted({*_SMALL_FILES, ADAPTER_CONFIG, INDEX}):
        file = directory / name
        if (file.exists() or file.is_symlink()) and not file.is_file():
            raise ModelFilesError(broken_link(file) or f"{file}: it is not a regular file, which a model's files are.")


def has_safetensors(names: Collection[str]) -> bool:
    """Whether the weights are there in safetensors, so that the repository's own name means these."""
    return SINGLE_FILE in names or INDEX in names


def needs_index(names: Collection[str]) -> bool:
    """Whether the weights are in shards, which the index names: one whole file wins over it, as in transformers."""
    return SINGLE_FILE not in names and INDEX in names


def is_chat_template(name: str) -> bool:
    """Whether a file is one of the templates that repositories keep in a directory of their own."""
    return _CHAT_TEMPLATE.fullmatch(name) is not None


def needed_files(names: Collection[str], shards: Collection[str] = ()) -> list[str]:
    """The files that a run needs among all those of a repository, the small ones first.

    shards: the weight files that the index names, where `needs_index`; it never lists others of the same weights, such
    as consolidated.safetensors. Raises UnsupportedModelError for weights in another format only, and ModelFilesError
    where there are none, or where files are missing.
    """
    weights = sorted(shards) if needs_index(names) else [SINGLE_FILE]
    small = sorted(name for name in names if name in _SMALL_FILES or is_chat_template(name))
    if needs_index(names):
        small.append(INDEX)
    elif SINGLE_FILE not in names:
        raise _no_weights(names)
    if "config.json" not in names:
        raise ModelFilesError("it has no config.json, so it is no model that transformers could run.")
    if absent := [name for name in weights if name not in names]:
        raise ModelFilesError(
            f"it is incomplete: {len(absent)} of {len(weights)} weight files that its index names are missing, "
            f"the first is {absent[0]}."
        )
    return [*small, *weights]


def needed_for_gguf(names: Collection[str], weights: Sequence[str]) -> list[str]:
    """The files that a run of one GGUF model needs: its own, which hold the rest, and how it wants to be sampled."""
    return [*(name for name in (GENERATION_CONFIG,) if name in names), *weights]


def _no_weights(names: Collection[str]) -> ModelFilesError | UnsupportedModelError:
    found = weights_found(names)
    if advice := remedy(names):
        return UnsupportedModelError(f"it has no {SINGLE_FILE}, only {found}. {advice}")
    return ModelFilesError(f"it has no weights in safetensors format{f', only {found}' if found else ''}.")
