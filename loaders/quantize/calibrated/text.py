"""The text that a model is calibrated with: a file's, or Python's own documentation. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from loaders.errors import ModelFilesError

BUNDLED = "bundled"
TEXTS, TOKENS = 32, 512  # 16,384 rows for each Σ x xᵀ: more than the inputs of most matrices
VERSION = 1  # of what is done with the text
MOST_BYTES = 100_000_000


def calibration_text(source: str | Path) -> str:
    """The content of a UTF-8 file, or for "bundled" what `pydoc` explains of the Python language, 0.7 MB of English.

    Raises ModelFilesError for a file that cannot be read.
    """
    if source == BUNDLED:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    path = Path(source)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelFilesError(f"{path}: a text for --calibration has at most {MOST_BYTES // 10**6} MB.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelFilesError(f"{path}: cannot be read for --calibration ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ModelFilesError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}).") from error


def calibration_mark(text: str) -> str:
    """What tells one calibration from another."""
    return hashlib.sha256(f"{VERSION} {TEXTS} {TOKENS} {text}".encode()).hexdigest()[:16]


def windows(ids: Sequence[int], most_tokens: int, what: str) -> list[list[int]]:
    """Up to `TEXTS` pieces of a text's token ids, evenly spread, all of one length.

    most_tokens: the model's context. Raises ModelFilesError for a text that is shorter than one piece.
    """
    length = min(TOKENS, most_tokens)
    if len(ids) < length:
        raise ModelFilesError(
            f"{what}: this text has {len(ids)} tokens, but --calibration needs at least {length}, better "
            f"{TEXTS * length}. Give a longer one, or leave --calibration out."
        )
    count = min(TEXTS, len(ids) // length)
    spare = len(ids) - count * length
    begins = (index * length + spare * index // max(count - 1, 1) for index in range(count))
    return [list(ids[begin : begin + length]) for begin in begins]
