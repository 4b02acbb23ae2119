"""Random weights in the shape of a model, written to disk for the run and removed with it."""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from termination import ended_by_sigterm

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from loaders.json_files import read_json
from loaders.modules.skeleton import build_skeleton
from offload_runtime.errors import UsageError
from scheduler.sizes import format_size

MOST_BYTES = 16_000_000_000  # written without being asked to
DISK_SHARE = 0.5

Note = Callable[[str], None]


@dataclass(frozen=True)
class MadeUp:
    """Directories of made-up models; `distinct_layers` of the target's `layers` are on disk, the others repeat them."""

    target: Path
    draft: Path | None
    layers: int
    distinct_layers: int


@contextmanager
def made_up_weights(arguments: argparse.Namespace, note: Note) -> Iterator[MadeUp]:
    """Write what `--shape` and `--draft-shape` ask for; everything is removed after the block unless it is to be kept.

    Raises UsageError for unknown shapes, ModelFilesError for full disks.
    """
    config, draft_config = shape_config(arguments.shape), None
    if arguments.draft_shape is not None:
        draft_config = {**shape_config(arguments.draft_shape), "vocab_size": config["vocab_size"]}
    with _work_directory(arguments) as directory:
        writer = _Writer(directory, arguments.shape_dtype, note)
        target, distinct = writer.write(arguments.shape, config, arguments.seed or 0, arguments.distinct_layers)
        draft = None
        if draft_config is not None:  # of another seed: the target's own shape must not make the target itself
            draft, _ = writer.write(arguments.draft_shape, draft_config, (arguments.seed or 0) + 1)
        yield MadeUp(target, draft, config["num_hidden_layers"], distinct)


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
    if arguments.keep:
        if arguments.work_dir is None:
            raise UsageError("--keep needs --work-dir DIR, to know where")
        make_directory(arguments.work_dir)
        yield arguments.work_dir
        return
    if arguments.work_dir is not None:
        make_directory(arguments.work_dir)
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.work_dir) as directory:
        yield Path(directory)


def make_directory(directory: Path) -> None:
    """For `--work-dir`. Raises UsageError where it cannot be made or written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--work-dir {directory}: cannot be made ({error.strerror})") from error
    if not os.access(directory, os.W_OK):
        raise UsageError(f"--work-dir {directory}: cannot be written to")


@dataclass(frozen=True)
class _Writer:
    """Writes checkpoints into `directory`; those of an earlier run that were kept are used again."""

    directory: Path
    dtype: str
    note: Note

    def write(self, shape: str, config: dict[str, Any], seed: int, distinct: int | None = None) -> tuple[Path, int]:
        """The directory with the weights, and how many of the layers it holds."""
        layer_bytes, outer_bytes = _sizes(config, self.dtype, self.directory)
        distinct = min(distinct or self._affordable(layer_bytes, outer_bytes), config["num_hidden_layers"])
        name = Path(shape).resolve().parent.name if Path(shape).is_file() else shape
        directory = self.directory / f"{self.dtype}-seed-{seed}-layers-{distinct}" / name
        if directory.exists():
            self.note(f"using the random weights in {directory}")
            return directory, distinct
        self.note(f"writing {format_size(outer_bytes + distinct * layer_bytes)} of random weights to {directory}")
        unfinished = directory.with_name(f"{name}.unfinished")
        write_random_checkpoint(config, unfinished, getattr(torch, self.dtype), seed, distinct_layers=distinct)
        return unfinished.rename(directory), distinct

    def _affordable(self, layer_bytes: int, outer_bytes: int) -> int:
        """As many layers as half the free disk holds, within reason."""
        room = min(MOST_BYTES, int(shutil.disk_usage(self.directory).free * DISK_SHARE))
        return max(1, (room - outer_bytes) // layer_bytes)


def _sizes(config: dict[str, Any], dtype: str, work_directory: Path) -> tuple[int, int]:
    """Bytes of the largest layer, and of everything outside the layers."""
    with tempfile.TemporaryDirectory(dir=work_directory) as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        skeleton = build_skeleton(directory, getattr(torch, dtype), "cpu", attn_implementation="eager")
    return max(unit.layout.nbytes for unit in skeleton.units), skeleton.outer.layout.nbytes
