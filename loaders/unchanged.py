"""What was read from files is kept for as long as they stay as they are. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TypeVar

Read = TypeVar("Read")
Signature = tuple[tuple[int, int, int, int], ...]

# Files that changed so lately can change again within the resolution of their times, 10 ms at most.
SETTLED_SECONDS = 1.0
KEPT = 512  # readings; large models have up to 200 files


def signature(files: Sequence[Path]) -> Signature | None:
    """What is other once one of the files is written anew; None where that cannot be told, or a file is missing."""
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
    """Let a function of a path be called once, and again where a file changed; depends_on: what it reads, by the path.

    What it returns is shared by all callers. Errors are not kept.
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
