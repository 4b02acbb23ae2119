"""The directory that packed weights are written to: complete or not there, with what the first start left beside it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError

SMALL_FILE_BYTES = 100_000_000
# Files copied beside the weights, by suffix: tokenizer, generation config and chat template. Never code.
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*/*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_COPIED = {"config.json", "acceptance.json"}


@contextmanager
def work_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory beside `directory`, removed at the end unless renamed or interrupted.

    It is locked while the process lives. Raises ModelFilesError if another process holds it, or on disk errors.
    """
    work = _partial(directory)
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise ModelFilesError(
            f"{work}: cannot be made ({error.strerror}). Choose another with --quantized-directory DIR."
        ) from error
    try:
        if not _locked(descriptor, work):
            raise ModelFilesError(
                f"{directory}: another process is packing these weights. Wait until it is done, then start again."
            )
        try:
            yield work
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def put_in_place(work: Path, directory: Path) -> None:
    """Rename the temporary directory once it is complete. Raises ModelFilesError."""
    try:
        work.rename(directory)
    except OSError as error:
        raise ModelFilesError(
            f"{directory}: the packed weights cannot be put there ({error.strerror}). It must be empty, or not "
            "exist: choose another with --quantized-directory DIR."
        ) from error


def begun_bytes(directory: Path) -> int:
    """Bytes that an interrupted call for `directory` has left on disk."""
    return allocated(_partial(directory))


def _partial(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.partial")


def allocated(work: Path) -> int:
    """Bytes on disk of the files of weights in it."""
    return sum(file.stat().st_blocks * 512 for file in work.glob("*.safetensors"))


def clear(work: Path, keep: Collection[Path]) -> None:
    """Remove everything else in it."""
    for left in work.iterdir():
        if left in keep:
            continue
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _locked(descriptor: int, directory: Path) -> bool:
    """Lock an open directory; False where another process has it, or has just renamed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), directory.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def write_others(source: Path, config: Mapping[str, Any], directory: Path) -> None:
    """Write config.json, and copy what belongs to the model in `source` besides its weights."""
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in sorted(file for pattern in COPIED for file in source.glob(pattern)):
        is_small = file.is_file() and file.stat().st_size <= SMALL_FILE_BYTES
        if is_small and file.name not in NOT_COPIED and not file.name.endswith(".index.json"):
            copy = directory / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
