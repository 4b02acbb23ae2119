"""What a chat keeps between sessions, readable by its user only: the input history and the last conversation."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory

MOST_BYTES = 1_000_000  # of history; a longer one is cut to its newest half when a chat begins
OFF = "off"


def state_directory() -> Path | None:
    """$SEQUOIA_OFFLOAD_STATE, else $XDG_STATE_HOME/sequoia-offload, else ~/.local/state/sequoia-offload.

    Created if missing. None if it is "off", or cannot be made private to this user.
    """
    own, shared = os.environ.get("SEQUOIA_OFFLOAD_STATE"), os.environ.get("XDG_STATE_HOME", "")
    if own == OFF:
        return None
    try:
        parent = Path(shared) if Path(shared).is_absolute() else Path.home() / ".local" / "state"
        directory = Path(own) if own else parent / "sequoia-offload"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.stat().st_uid != os.getuid():
            return None
        directory.chmod(0o700)
        return directory if os.access(directory, os.W_OK) else None
    except (OSError, RuntimeError):  # no home, no room, a file in the way
        return None


class PrivateHistory(FileHistory):
    """Lines of all sessions, in a file that only its user can read. Lines that cannot be written are dropped."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._path = path
        with suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            path.chmod(0o600)
            self._shorten()

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)

    def _shorten(self) -> None:
        if self._path.stat().st_size > MOST_BYTES:
            newest = self._path.read_bytes()[-MOST_BYTES // 2 :]
            self._path.write_bytes(newest[newest.find(b"\n#") + 1 :])
