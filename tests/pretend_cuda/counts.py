"""What the work given to the pretended GPU amounts to: launches, uploads, waits, graphs, memory."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import local

_PROJECT = str(Path(__file__).resolve().parents[2])
_HERE = str(Path(__file__).parent)


@dataclass
class Counts:
    """Of one thread, over one block.

    launches: operations by name, views left out; each is a kernel or a few. uploads: copies out of pinned memory that
    the computing stream was given, waits: host waits for the device, both by the function that asked for them; an
    upload out of pageable memory is a wait. replays, captures: graphs. allocated: device bytes of new tensors.
    """

    launches: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    replays: int = 0
    captures: int = 0
    allocated: int = 0

    def add(self, other: "Counts") -> None:
        """Take what was counted over a part of the block into this."""
        self.launches += other.launches
        self.uploads += other.uploads
        self.waits += other.waits
        self.replays += other.replays
        self.captures += other.captures
        self.allocated += other.allocated


class _Thread(local):
    def __init__(self) -> None:
        self.counts = Counts()


_thread = _Thread()


def counted() -> Counts:
    """What this thread's innermost block has counted so far."""
    return _thread.counts


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what this thread gives to the device in the block; the blocks around count it, too."""
    around, _thread.counts = _thread.counts, Counts()
    try:
        yield _thread.counts
    finally:
        around.add(_thread.counts)
        _thread.counts = around


def asker() -> str:
    """The project's innermost function that is running, or else a library's, as "module.function"."""
    frame, outside = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_HERE):
            name = f"{frame.f_globals.get('__name__', '?').rpartition('.')[2]}.{frame.f_code.co_name}"
            if file.startswith(_PROJECT) and "site-packages" not in file:
                return name
            if not outside and "/torch/" not in file:
                outside = name
        frame = frame.f_back
    return outside or "?"
