"""The prompt that a command line, a file or a pipe gives."""

import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from offload_runtime.errors import UsageError

STDIN = Path("-")
MOST_BYTES = 64 << 20  # more text than any context holds
PATIENCE = 3.0  # seconds for a pipe beside --prompt to bring its first byte


def given_prompt(prompt: str | None, file: Path | None, note: Callable[[str], None]) -> str | None:
    """--prompt followed by the text of --file or a pipe, or one of them alone; None if nothing is given: a chat.

    Raises UsageError for an empty prompt and for input that cannot be read.
    """
    if file is not None:
        added = _piped() if file == STDIN else read_text(file)
    elif sys.stdin.isatty() or (prompt is not None and not _is_piped(note)):
        added = None
    else:
        added = _piped()
    parts = [part for part in (prompt, added) if part is not None]
    if not parts:
        return None
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise UsageError("the prompt is empty")
    return text


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a final line break. Raises UsageError."""
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            return _text(file, str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _piped() -> str:
    return _text(sys.stdin.buffer, "what was piped in")


def _text(file: BinaryIO, source: str) -> str:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError(f"{source} is longer than {MOST_BYTES >> 20} MiB: no context holds that much")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def _is_piped(note: Callable[[str], None]) -> bool:
    """Whether standard input holds text that goes with --prompt.

    A pipe that nobody writes to, such as one inherited from a parent program, must not block for ever.
    """
    try:
        descriptor = sys.stdin.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # closed, or not the system's
        return False
    if stat.S_ISREG(kind):
        return True
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return False
    if select.select([descriptor], [], [], PATIENCE)[0]:
        return True
    note(f"nothing was piped in for {PATIENCE:.0f} s, so the prompt goes alone; -f - waits for what comes")
    return False
