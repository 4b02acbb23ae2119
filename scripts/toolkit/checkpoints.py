"""Checkpoints made for a run, and directories and a cache of its own: everything is removed afterwards."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from loaders.json_files import read_json
from loaders.modules.skeleton import build_skeleton
from loaders.sizes import format_size
from offload_runtime.errors import UsageError
from toolkit.output import Note

MOST_BYTES = 16_000_000_000  # written without being asked to
DISK_SHARE = 0.5
_CACHE = "SEQUOIA_OFFLOAD_CACHE"


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that what was written for the run is removed before the process goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def run_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A directory for the block, in `parent`, which is made. Raises UsageError where --work-dir cannot be that."""
    if parent is not None:
        make_directory(parent)
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory:
        yield Path(directory)


def make_directory(directory: Path) -> None:
    """For `--work-dir`. Raises UsageError where it cannot be made or written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--work-dir {directory}: cannot be made ({error.strerror})") from error
    if not os.access(directory, os.W_OK):
        raise UsageError(f"--work-dir {directory}: cannot be written to")


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


@dataclass(frozen=True)
class RandomModels:
    """Directories of random models; `distinct_layers` of the target's `layers` are on disk, the others repeat them."""

    target: Path
    draft: Path | None
    layers: int
    distinct_layers: int


@contextmanager
def random_models(
    arguments: argparse.Namespace, note: Note, draft_shape: str | None = None, distinct_layers: int | None = None
) -> Iterator[RandomModels]:
    """Write what `--shape` and a draft's shape ask for; removed after the block unless it is to be kept.

    distinct_layers: of the target; None for as many as the disk can well hold. Raises UsageError for unknown shapes,
    ModelFilesError for full disks.
    """
    config, seed = shape_config(arguments.shape), arguments.seed or 0
    drafts = {} if draft_shape is None else {**shape_config(draft_shape), "vocab_size": config["vocab_size"]}
    with _work_directory(arguments) as directory:
        writer = _Writer(directory, arguments.shape_dtype, note)
        target, distinct = writer.write(arguments.shape, config, seed, distinct_layers)
        draft = None
        if draft_shape is not None:  # of another seed: the target's own shape must not make the target itself
            draft, _ = writer.write(draft_shape, drafts, seed + 1)
        yield RandomModels(target, draft, config["num_hidden_layers"], distinct)


def shape_config(shape: str) -> dict[str, Any]:
    """The config of a known shape, or of a config.json. Raises UsageError."""
    if shape in SHAPES:
        return dict(SHAPES[shape])
    if not Path(shape).is_file():
        raise UsageError(f"{shape!r} is neither a config.json nor a shape; the shapes are {', '.join(SHAPES)}")
    config = read_json(Path(shape))
    if not isinstance(config.get("num_hidden_layers"), int) or not isinstance(config.get("vocab_size"), int):
        raise UsageError(f"{shape}: it states no num_hidden_layers or vocab_size; is it a config.json?")
    return config


@contextmanager
def _work_directory(arguments: argparse.Namespace) -> Iterator[Path]:
    if not arguments.keep:
        with run_directory("benchmark-", arguments.work_dir) as directory:
            yield directory
        return
    if arguments.work_dir is None:
        raise UsageError("--keep needs --work-dir DIR, to know where")
    make_directory(arguments.work_dir)
    yield arguments.work_dir


@dataclass(frozen=True)
class _Writer:
    """Writes checkpoints into `directory`; those of an earlier run that were kept are used again."""

    directory: Path
    dtype: str
    note: Note

    def write(self, shape: str, config: dict[str, Any], seed: int, distinct: int | None = None) -> tuple[Path, int]:
        """The directory with the weights, and how many of the layers it holds."""
        layer_bytes, embeddings_and_head_bytes = _sizes(config, self.dtype, self.directory)
        distinct = min(
            distinct or self._affordable(layer_bytes, embeddings_and_head_bytes), config["num_hidden_layers"]
        )
        name = Path(shape).resolve().parent.name if Path(shape).is_file() else shape
        directory = self.directory / f"{self.dtype}-seed-{seed}-layers-{distinct}" / name
        if directory.exists():
            self.note(f"using the random weights in {directory}")
            return directory, distinct
        self.note(
            f"writing {format_size(embeddings_and_head_bytes + distinct * layer_bytes)} of weights to {directory}"
        )
        unfinished = directory.with_name(f"{name}.unfinished")
        write_random_checkpoint(config, unfinished, getattr(torch, self.dtype), seed, distinct_layers=distinct)
        return unfinished.rename(directory), distinct

    def _affordable(self, layer_bytes: int, embeddings_and_head_bytes: int) -> int:
        """As many layers as half the free disk holds, within reason."""
        room = min(MOST_BYTES, int(shutil.disk_usage(self.directory).free * DISK_SHARE))
        return max(1, (room - embeddings_and_head_bytes) // layer_bytes)


def _sizes(config: dict[str, Any], dtype: str, work_directory: Path) -> tuple[int, int]:
    """Bytes of the largest layer, and of everything outside the layers."""
    with tempfile.TemporaryDirectory(dir=work_directory) as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        skeleton = build_skeleton(directory, getattr(torch, dtype), "cpu", attn_implementation="eager")
    return max(layer.layout.nbytes for layer in skeleton.layers), skeleton.embeddings_and_head.layout.nbytes
