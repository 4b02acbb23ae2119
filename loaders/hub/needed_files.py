"""Which of a repository's files a run needs: a pure function of their names. No network, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import ADAPTER_CONFIG, INDEX, SINGLE_FILE, broken_link, remedy, weights_found
from loaders.formats.side_files import SIDE_FILES

GENERATION_CONFIG = "generation_config.json"

# The vocabulary is in one of these, whatever the kind of tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
# What `vocabulary` reads.
TOKEN_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")

# Small files beside the weights. None of them is code: a repository's code is never downloaded.
_SMALL_FILES = {
    *("config.json", GENERATION_CONFIG, "acceptance.json"),
    *SIDE_FILES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
    *VOCABULARY_FILES,
}
_CHAT_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")


def check_small_files(directory: Path) -> None:
    """Raise ModelFilesError if an optional file that a run would read is not a regular file.

    A broken link, as an unfinished download leaves it, or a directory would count as absent: the model would run, but
    with the wrong sampling settings or chat template.
    """
    for name in sorted({*_SMALL_FILES, ADAPTER_CONFIG, INDEX}):
        file = directory / name
        if (file.exists() or file.is_symlink()) and not file.is_file():
            raise ModelFilesError(broken_link(file) or f"{file}: it is not a regular file, which a model's files are.")


def has_safetensors(names: Collection[str]) -> bool:
    """Whether there are safetensors weights, which the repository's plain name then means."""
    return SINGLE_FILE in names or INDEX in names


def needs_index(names: Collection[str]) -> bool:
    """Whether the weights are shards named by an index: a single file wins over the index, as in transformers."""
    return SINGLE_FILE not in names and INDEX in names


def is_chat_template(name: str) -> bool:
    """Whether a file is a chat template in the repository's directory of templates."""
    return _CHAT_TEMPLATE.fullmatch(name) is not None


def needed_files(names: Collection[str], shards: Collection[str] = ()) -> list[str]:
    """The files of a repository that a run needs, small ones first.

    shards: the weight files that the index names, if `needs_index`; copies of the same weights, such as
    consolidated.safetensors, are not in the index. Raises UnsupportedModelError if there are only weights in another
    format, and ModelFilesError if there are none, or if files are missing.
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
    """The files that a GGUF model needs: its own, which hold nearly everything, and its sampling defaults."""
    return [*(name for name in (GENERATION_CONFIG,) if name in names), *weights]


def _no_weights(names: Collection[str]) -> ModelFilesError | UnsupportedModelError:
    found = weights_found(names)
    if advice := remedy(names):
        return UnsupportedModelError(f"it has no {SINGLE_FILE}, only {found}. {advice}")
    return ModelFilesError(f"it has no weights in safetensors format{f', only {found}' if found else ''}.")
