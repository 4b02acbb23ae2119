"""Where figures are kept from one start to the next."""

import os
import tempfile
from pathlib import Path


def cache_directory() -> Path | None:
    """$SEQUOIA_OFFLOAD_CACHE, else $XDG_CACHE_HOME/sequoia-offload, else ~/.cache/sequoia-offload; None: no home."""
    own, shared = os.environ.get("SEQUOIA_OFFLOAD_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own)
    if Path(shared).is_absolute():  # the standard wants any other ignored
        return Path(shared) / "sequoia-offload"
    try:
        return Path.home() / ".cache" / "sequoia-offload"
    except RuntimeError:
        return None


def write_whole(path: Path, text: str) -> None:
    """Put a file of UTF-8 text in place at once: whoever reads sees the old or the new one, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)  # of a measurement nothing is private
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
