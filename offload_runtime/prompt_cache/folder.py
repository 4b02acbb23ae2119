"""The directory of a prompt cache: private to its user, and held to a size; what was used least recently goes first.

Every model has a folder of its own in it. Several processes may use one directory: files appear and disappear as a
whole, and whatever is not named like a block's file is left alone. Imports no torch.
"""

import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loaders.sizes import GIB, MIB
from offload_runtime.errors import UsageError
from offload_runtime.prompt_cache.blocks import DIGEST, is_block_name

SHARE_OF_DISK, MOST_BYTES = 0.1, 16 * GIB  # without a size
LEFT_FREE = 256 * MIB  # of the disk, whatever the size
COUNTED_SECONDS = 10.0  # after which the files are counted again: other processes may have changed them
UNFINISHED_SECONDS = 3600.0  # a file that was begun so long ago was left behind by a kill


@dataclass(frozen=True)
class StoredFile:
    """A block's file. used: when, in nanoseconds."""

    path: Path
    nbytes: int
    used: int


class Folder:
    """size: most bytes of all files; None: a tenth of the disk's free bytes, at most 16 GiB."""

    def __init__(self, path: Path, size: int | None = None):
        self.path = path
        self._make()
        files = [*self.files()]
        self._remove_unfinished()
        held = sum(file.nbytes for file in files)
        free = shutil.disk_usage(path).free
        self.size = min(MOST_BYTES, int(SHARE_OF_DISK * (free + held))) if size is None else size
        self._held, self._counted_at = held, time.monotonic()

    def of_model(self, identity: str) -> Path:
        """A model's own folder, which need not exist."""
        return self.path / identity

    def files(self) -> Iterator[StoredFile]:
        """The blocks of all models."""
        for folder in self._folders():
            for entry in entries(folder):
                with suppress(OSError):  # removed meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if is_block_name(entry.name) and stat.S_ISREG(status.st_mode):
                        yield StoredFile(Path(entry.path), status.st_size, status.st_mtime_ns)

    def make_room(self, nbytes: int, used: int) -> bool:
        """Remove blocks, those last used before `used`, until a file of `nbytes` may be written.

        False, and nothing removed, if that cannot be.
        """
        free = shutil.disk_usage(self.path).free - LEFT_FREE
        recent = time.monotonic() - self._counted_at < COUNTED_SECONDS
        if recent and nbytes <= min(free, self.size - self._held):
            self._held += nbytes
            return True
        files = sorted(self.files(), key=lambda file: file.used)
        self._held, self._counted_at = sum(file.nbytes for file in files), time.monotonic()
        surplus = nbytes - min(free, self.size - self._held)
        older = [file for file in files if file.used < used]
        if surplus > sum(file.nbytes for file in older):
            return False
        for file in older:
            if surplus <= 0:
                break
            self.remove(file.path)
            surplus -= file.nbytes
            self._held -= file.nbytes
        self._held += nbytes
        return True

    def remove(self, path: Path) -> None:
        """Remove a block, and the folder of its model if that was its last."""
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def _make(self) -> None:
        """Create the directory if it is missing. Raises UsageError if it is not its user's own."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.path.stat()
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be the prompt cache's directory ({error.strerror})") from error
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"{self.path}: others may write to this directory, so nothing in it can be trusted. Choose one of your "
                "own, --prompt-cache DIR; it is created if it does not exist"
            )

    def _folders(self) -> Iterator[Path]:
        for entry in entries(self.path):
            if len(entry.name) == DIGEST and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)

    def _remove_unfinished(self) -> None:
        for folder in self._folders():
            for entry in entries(folder):
                name = entry.name[1:].rpartition(".")[0]
                with suppress(OSError):
                    old = time.time() - entry.stat(follow_symlinks=False).st_mtime > UNFINISHED_SECONDS
                    if entry.name.startswith(".") and is_block_name(name) and old:
                        Path(entry.path).unlink()


def mark_used(paths: Iterable[Path], when: int) -> None:
    """Note that a chain of blocks was used at `when`, in nanoseconds; each a little earlier than the one before it.

    So blocks never go before those that follow them.
    """
    for number, path in enumerate(paths):
        with suppress(OSError):  # removed meanwhile, or not ours to write
            os.utime(path, ns=(when - number, when - number), follow_symlinks=False)


def entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    """What a folder holds; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [*found]
    except OSError:
        return []
