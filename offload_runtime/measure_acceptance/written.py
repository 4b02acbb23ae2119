"""Replies written for a measurement, kept until it is done, so that an interrupted one can resume."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from loaders.json_files import parse_object


class WrittenReplies:
    """Token ids of replies by their question, one line of JSON each. Replies that cannot be kept are dropped.

    path: None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._replies: dict[str, list[int]] = {}
        with suppress(OSError, UnicodeDecodeError):
            for line in path.read_text(encoding="utf-8").splitlines() if path else ():
                self._read(line)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, question: Sequence[object]) -> list[int] | None:
        """The reply to a question, which names everything it depends on; None if not written yet."""
        return self._replies.get(_key(question))

    def add(self, question: Sequence[object], reply: list[int]) -> None:
        """Keep a reply at once."""
        self._replies[_key(question)] = reply
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"question": _key(question), "reply": reply}) + "\n")

    def remove(self) -> None:
        """The measurement is done."""
        with suppress(OSError):
            if self._path:
                self._path.unlink(missing_ok=True)

    def _read(self, line: str) -> None:
        with suppress(ValueError):  # the last line of a process that was killed
            entry = parse_object(line.encode())
            question, reply = entry.get("question"), entry.get("reply")
            are_ids = isinstance(reply, list) and all(type(token) is int and token >= 0 for token in reply)
            if isinstance(question, str) and reply and are_ids:
                self._replies[question] = reply


def _key(question: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()
