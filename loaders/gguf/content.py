"""Where the bytes of GGUF files come from: the disk, or the hub if they are not downloaded yet."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loaders.errors import ModelFilesError

_FIRST_BYTES = 1 << 25  # more than the largest published header, read in 10 ms: one read is enough


class Content(Protocol):
    """Files that can be read in ranges. Every method raises ModelFilesError."""

    @property
    def is_local(self) -> bool:
        """Whether small reads at any offset are cheap."""

    def first_bytes(self, file: Path) -> int:
        """How many bytes to read first, while the header's length is unknown."""

    def has(self, file: Path) -> bool:
        """Whether the file can be read."""

    def size(self, file: Path) -> int:
        """The file's size in bytes."""

    def read(self, file: Path, start: int, stop: int) -> bytes:
        """Bytes [start, stop), never fewer."""


class Disk:
    """Files on disk."""

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
