"""Reads untrusted JSON files with limits: a regular file of limited size that holds one object. Imports no torch."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.foreign_files import ForeignContent, foreign_content

MOST_BYTES = 256 << 20  # the largest published ones, vocabularies, have 35 MB
_MOST_DIGITS = 100  # configs write 1e30 for "no limit"; Python itself refuses more than 4,300
_COUNTED_BYTES = 4 << 20  # in larger files (vocabularies) counting digits would take 0.2 s
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # whole pairs among them


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object that a model's file holds; raises ModelFilesError."""
    try:
        return read_object(file)
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    except ForeignContent as error:
        raise ModelFilesError(f"{file}: {error}.") from error
    except ValueError as error:
        raise ModelFilesError(f"{file}: {error}. The file is damaged or incomplete; download it again.") from error


def read_object(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in `file`. Raises OSError, and ValueError with the reason."""
    return parse_object(read_regular(file, most_bytes))


def parse_object(text: bytes, unique_names: bool = False) -> dict[str, Any]:
    """Parse `text` as a JSON object. Raises ValueError, also for a repeated name where names must be unique."""
    hook = _unique if unique_names else None
    if other := foreign_content(text):
        raise ForeignContent(other)
    whole = _whole_number if len(text) <= _COUNTED_BYTES else None
    try:
        value = json.loads(text, parse_int=whole, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("its JSON cannot be read (brackets nest too deeply)") from None
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    if _SURROGATE.search(text):
        _check_text(value)
    return value


def read_regular(file: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most_bytes`. Never blocks on a FIFO. Raises OSError, ValueError.

    It is opened as an object, which is closed however Ctrl-C hits; a descriptor just returned by `os.open` is not.
    """
    try:
        _check_regular(Path(file).stat(), most_bytes)  # opening a FIFO would block
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise FileNotFoundError(errno.ENOENT, str(error)) from error  # a zero byte in the name
    with Path(file).open("rb") as stream:
        _check_regular(os.fstat(stream.fileno()), most_bytes)
        return stream.read(most_bytes)


def _check_regular(status: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r:.80} is there twice")
        values[name] = value
    return values


def _check_text(value: dict[str, Any]) -> None:
    """Reject half a surrogate pair: encoding it later would fail."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("its JSON holds half of a surrogate pair, which is no text") from None
