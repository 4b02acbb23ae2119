"""The lines of a job's input, read one by one, so that the file may be larger than memory. Imports no torch."""

import codecs
import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from offload_runtime.errors import UsageError

MOST_BYTES = 16 << 20  # of a line; 128k tokens of text take about 0.5 MB
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WITH_END = MOST_BYTES + 2
_PIECE = 1 << 20


@dataclass(frozen=True)
class InputLine:
    """A line that is not blank.

    index: its number, from 0; blank lines count. text: without its line end; None if it is longer than MOST_BYTES.
    digest: of the whole text, 16 hexadecimal digits.
    """

    index: int
    text: bytes | None
    digest: str


def input_lines(path: Path) -> Iterator[InputLine]:
    """The lines of a JSON Lines file; a byte order mark, line ends of Windows and blank lines do not count.

    Raises UsageError for what cannot be read, is no regular file, or is UTF-16.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(
                f"--input {path} is not a regular file. A job that was interrupted reads its input again, so it has "
                "to be a file on disk"
            )
        with path.open("rb") as file:
            yield from _lines(path, file)
    except OSError as error:
        raise UsageError(f"--input {path}: cannot be read ({error.strerror})") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[InputLine]:
    index = 0
    while piece := file.readline(_WITH_END):
        if index == 0:
            if piece.startswith(_UTF16):
                raise UsageError(f"--input {path} is UTF-16 text: save it as UTF-8")
            piece = piece.removeprefix(codecs.BOM_UTF8)
        line = _line(index, piece, file)
        if line is not None:
            yield line
        index += 1


def _line(index: int, piece: bytes, file: BinaryIO) -> InputLine | None:
    if piece.endswith(b"\n") or len(piece) < _WITH_END:
        text = piece.rstrip(b"\r\n")
        return InputLine(index, text, _digest(text).hexdigest()) if text.strip() else None
    digest = _digest(piece)
    while not piece.endswith(b"\n") and (piece := file.readline(_PIECE)):
        digest.update(piece)
    return InputLine(index, None, digest.hexdigest())


def _digest(text: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(text, digest_size=8)
