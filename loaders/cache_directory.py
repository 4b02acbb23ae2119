"""Where measurements are kept from one start to the next, and how files are replaced as a whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_directory() -> Path | None:
    """$SEQUOIA_OFFLOAD_CACHE, else $XDG_CACHE_HOME/sequoia-offload, else ~/.cache/sequoia-offload; None: no home."""
    own, shared = os.environ.get("SEQUOIA_OFFLOAD_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own)
    if Path(shared).is_absolute():  # the XDG standard says to ignore relative paths
        return Path(shared) / "sequoia-offload"
    try:
        return Path.home() / ".cache" / "sequoia-offload"
    except RuntimeError:
        return None


def write_whole(path: Path, text: str) -> None:
    """`replace_whole` for a file that others may read; creates the directory if missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, text, mode=0o644)


def replace_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a UTF-8 text file atomically: readers see the whole old file or the whole new one. Raises OSError.

    mode: permissions of the file; by default only its user can read it.
    """
    with replacing(path, mode) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write in the block; at its end it takes the place of `path`, unless an error ends the block.

    Until then it lies beside `path`, under a name that begins with a dot. A link in the place of `path` is replaced,
    not followed. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).chmod(mode)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
