"""Where the bytes of GGUF files come from: the disk, or the hub for files that are not downloaded yet."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loaders.errors import ModelFilesError

_FIRST_BYTES = 1 << 25  # more than the largest header there is, in 10 ms: no second look


class Content(Protocol):
    """Files that can be read in ranges. All of it raises ModelFilesError."""

    @property
    def is_local(self) -> bool:
        """Whether reading a few bytes anywhere costs little."""

    def first_bytes(self, file: Path) -> int:
        """How much of a file to read first, whose header is of unknown length."""

    def has(self, file: Path) -> bool:
        """Whether the file can be read."""

    def size(self, file: Path) -> int:
        """Bytes of the whole file."""

    def read(self, file: Path, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, all of them."""


class Disk:
    """Files that are there."""

    is_local = True

    def first_bytes(self, file: Path) -> int:
        return _FIRST_BYTES

    def has(self, file: Path) -> bool:
        return file.is_file()

    def size(self, file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error) from error

    def read(self, file: Path, start: int, stop: int) -> bytes:
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                content = stream.read(stop - start)
        except OSError as error:
            raise _unreadable(file, error) from error
        if len(content) != stop - start:
            raise ModelFilesError(f"{file}: it became shorter while it was read. Download it again.")
        return content


DISK = Disk()


def _unreadable(file: Path, error: OSError) -> ModelFilesError:
    return ModelFilesError(f"{file}: cannot be read ({error.strerror}).")
