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
    """`replace_whole` for what is nobody's secret, in a directory that is made where it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, text, mode=0o644)


def replace_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Put a file of UTF-8 text in place at once: whoever reads sees the old or the new one, whole. Raises OSError.

    mode: of the file; as it stands its user's alone.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
