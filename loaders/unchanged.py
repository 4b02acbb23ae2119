"""Caches what was read from files until they change. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TypeVar

Read = TypeVar("Read")
Signature = tuple[tuple[int, int, int, int], ...]

# A file that changed this recently could change again without a new timestamp (resolution 10 ms at most).
SETTLED_SECONDS = 1.0
KEPT = 512  # cached results; large models have up to 200 files


def signature(files: Sequence[Path]) -> Signature | None:
    """A value that differs once one of the files is rewritten; None where that cannot be told or a file is missing."""
    try:
        stats = [file.stat() for file in files]
    except OSError:
        return None
    latest = max((max(stat.st_mtime, stat.st_ctime) for stat in stats), default=0.0)
    if time.time() - latest < SETTLED_SECONDS:
        return None
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def kept_while_unchanged(
    depends_on: Callable[[Path], Sequence[Path]],
) -> Callable[[Callable[[Path], Read]], Callable[[Path], Read]]:
    """Cache a function of a path until a file it reads changes; depends_on: those files, given the path.

    All callers share the result. Errors are not cached.
    """

    def decorate(read: Callable[[Path], Read]) -> Callable[[Path], Read]:
        kept: dict[Path, tuple[Signature, Read]] = {}

        @wraps(read)
        def reading(path: Path) -> Read:
            now = signature(depends_on(path))
            known = kept.get(path)
            if now is not None and known is not None and known[0] == now:
                return known[1]
            value = read(path)
            if now is not None:
                if len(kept) >= KEPT:
                    kept.clear()
                kept[path] = now, value
            return value

        return reading

    return decorate
