"""Records on disk which blocks of a checkpoint are quantized, so that an interrupted run can resume.

A line of JSON says what is quantized and how; then come records of 24 bytes, each a block's number and its errors. A
block is recorded once its data has reached the disk, so records hold after a power cut too.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from loaders.quantize.rounding import Errors

JOURNAL_FILE = "packed_pieces"
SYNC_SECONDS = 5.0  # the most work a power cut can cost

_RECORD = struct.Struct("<Qdd")
_NO_ERRORS = Errors(-1.0, -1.0)  # of a block that is only copied


class PackingJournal:
    """`done` maps the blocks that an earlier run recorded to their errors; None for copied blocks.

    what: the content and its layout; records of anything else are ignored. sync: called before blocks are recorded,
    to flush their data to the disk.
    """

    def __init__(self, directory: Path, what: Mapping[str, object]):
        self._path = directory / JOURNAL_FILE
        self._head = json.dumps(what, sort_keys=True).encode() + b"\n"
        self.done: dict[int, Errors | None] = self._read()
        self._pending: list[bytes] = []
        self._lock = threading.Lock()
        self._synced_at = time.monotonic()

    def _read(self) -> dict[int, Errors | None]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        if not content.startswith(self._head):
            return {}
        body = content[len(self._head) :]
        records = _RECORD.iter_unpack(body[: len(body) // _RECORD.size * _RECORD.size])  # the last may be torn
        return {block: None if norm < 0 else Errors(error, norm) for block, error, norm in records}

    def begin(self, keep: bool) -> None:
        """Write the journal's head and, with `keep`, the records that were read."""
        self.done = self.done if keep else {}
        records = b"".join(_record(block, errors) for block, errors in self.done.items())
        self._path.write_bytes(self._head + records)

    def add(self, block: int, errors: Errors | None, sync: Callable[[], None]) -> None:
        """Record a written block, at the latest at the next call of `flush`."""
        with self._lock:
            self._pending.append(_record(block, errors))
            if time.monotonic() - self._synced_at < SYNC_SECONDS:
                return
            self._synced_at = time.monotonic()
        self.flush(sync)

    def flush(self, sync: Callable[[], None]) -> None:
        """Record everything that was added."""
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        with suppress(OSError):  # the disk is full or gone: without a record, the work is repeated
            sync()
            with self._path.open("ab") as file:
                file.write(b"".join(pending))
                file.flush()
                os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the journal: the work is done."""
        self._path.unlink(missing_ok=True)


def _record(block: int, errors: Errors | None) -> bytes:
    errors = errors or _NO_ERRORS
    return _RECORD.pack(block, errors.error, errors.norm)
