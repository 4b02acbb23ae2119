"""A cache of a run's own in place of the user's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CACHE = "SEQUOIA_OFFLOAD_CACHE"


@contextmanager
def own_cache(directory: Path) -> Iterator[None]:
    """For the block, what is measured of machines and pairs is looked for and kept in `directory`."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if before is not None:
            os.environ[_CACHE] = before
