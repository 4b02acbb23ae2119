"""Tries a tokenizer's files before their first use, in a separate process with limits on time and memory.

Its patterns and replacements can run forever, fill the memory, or crash the library in ways that `except Exception`
does not catch. Results are remembered in the user's cache by the files' contents.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loaders.cache_directory import cache_directory, write_whole
from loaders.errors import ModelFilesError
from loaders.json_files import MOST_BYTES, parse_object, read_regular
from loaders.message_text import quoted
from loaders.tokenizers.sentencepiece_file import can_be_looked_up

_TRIED = ("tokenizer.json", "tekken.json")
# Files that loading a tokenizer may read, by the ends of their names.
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe")
CPU_SECONDS = 5  # a slow processor needs a third
_PATIENCE = 300  # seconds, generous for a busy machine; the CPU time limit usually ends it first
_known: set[str] = set()


def check_tokenizer_files(directory: Path) -> None:
    """Raise ModelFilesError, naming the file, if one is not a regular file, too large, or fails its trial."""
    for file in sorted(directory.iterdir()):
        if file.name.endswith(_READ) and file.exists() and not file.is_dir():
            _check_small(file)
    for file in (directory / name for name in _TRIED):
        if file.is_file():
            _check_tried(file)


@contextmanager
def panics_explained(source: Path | str) -> Iterator[None]:
    """Turn a panic, which `except Exception` does not catch, into an error for the user."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelFilesError(f"{source}: the tokenizer fails: {quoted(str(error), 200)}.") from error


def _check_small(file: Path) -> None:
    try:
        if not file.is_file():
            raise ModelFilesError(f"{file}: it is not a regular file, which a model's files are.")
        nbytes = file.stat().st_size
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    if nbytes > MOST_BYTES:
        raise ModelFilesError(f"{file}: it is larger than {MOST_BYTES:,} bytes, which no such file needs.")


def _check_tried(file: Path) -> None:
    try:
        content = read_regular(file)
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{file}: cannot be read ({error}).") from error
    mark = hashlib.sha256(f"{version('tokenizers')} {file.name}\n".encode() + content).hexdigest()
    cache = cache_directory()
    note = cache / "tokenizers" / mark if cache else None
    if mark in _known or (note and note.is_file()):
        return
    try:
        _check_tables(parse_object(content).get("normalizer"))
    except ValueError as error:
        raise ModelFilesError(f"{file}: {error}. The file is damaged or incomplete; download it again.") from error
    if fault := _fault(file):
        raise ModelFilesError(
            f"{file}: the tokenizer {fault}. The file is damaged, or its rules are made to run for ever: download it "
            "again, or take it from a copy of the model that you trust."
        )
    _known.add(mark)
    try:
        if note:
            write_whole(note, "")
    except OSError:
        pass  # then the next start tries it again


def _check_tables(normalizer: Any) -> None:
    """Check SentencePiece's replacement tables, which lookups do not. Raises ValueError."""
    steps = [normalizer]
    while steps:
        step = steps.pop()
        if not isinstance(step, dict):
            continue
        if isinstance(more := step.get("normalizers"), list):
            steps += more
        if step.get("type") == "Precompiled":
            try:
                table = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (TypeError, ValueError, binascii.Error):
                raise ValueError("its table of characters is no base64") from None
            if not can_be_looked_up(table):
                raise ValueError("its table of characters leads out of itself")


def _fault(file: Path) -> str | None:
    """The problem that the trial found; None if there is none, or if no process could be started."""
    command = [sys.executable, str(Path(__file__).with_name("trial_run.py")), str(file.absolute()), str(CPU_SECONDS)]
    environment = {**os.environ, "RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env=environment,
            check=False,
            start_new_session=True,  # Ctrl-C is for the parent, and must not look like a crash of the library
        )
    except subprocess.TimeoutExpired:
        return _ended("takes too long")
    except OSError:
        return None
    if run.returncode < 0:
        kind = signal.Signals(-run.returncode)
        return _ended("takes too long" if kind in (signal.SIGXCPU, signal.SIGKILL) else f"crashes ({kind.name})")
    return None if run.returncode == 0 else quoted(run.stdout.strip() or _ended("crashes"), 300)


def _ended(how: str) -> str:
    return f"fails on texts of a few thousand characters: it {how}"
