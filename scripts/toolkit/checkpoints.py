"""Checkpoints made for a run, in directories that are removed afterwards."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from offload_runtime.chat.terminal.interrupt import ended_in_order
from offload_runtime.errors import UsageError
from toolkit.output import Note

_CACHE = "SEQUOIA_OFFLOAD_CACHE"


@contextmanager
def run_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A directory for the block, in `parent`, which is made; removed after Ctrl-C and SIGTERM too."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with ended_in_order(), tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory:
        yield Path(directory)


@contextmanager
def own_cache(directory: Path) -> Iterator[None]:
    """For the block, what is measured of machines and pairs is looked for and kept in `directory`."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if before is not None:
            os.environ[_CACHE] = before


@contextmanager
def random_model(
    shape: str, dtype: str, parent: Path | None, note: Note, distinct_layers: int | None = None, seed: int = 0
) -> Iterator[Path]:
    """The directory of a model of a known shape, for the block; `distinct_layers` on disk stand for all.

    Raises UsageError for unknown shapes, ModelFilesError for full disks.
    """
    if shape not in SHAPES:
        raise UsageError(f"{shape!r} is no shape; the shapes are {', '.join(SHAPES)}")
    with run_directory("benchmark-", parent) as directory:
        note(f"writing random weights to {directory / shape}")
        stored = getattr(torch, dtype)
        write_random_checkpoint(SHAPES[shape], directory / shape, stored, seed, distinct_layers=distinct_layers)
        yield directory / shape
