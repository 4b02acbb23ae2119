"""Measurements of this machine, kept between runs: bandwidths of disk and link, speed of the device.

One JSON object in the user's cache: {subject: {"conditions": text, "date": ISO 8601, "figures": {name: number}}}.
Measurements under other conditions (driver, PyTorch, dtype) and old ones are ignored. Imports no torch.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from loaders.cache_directory import cache_directory, write_whole
from loaders.io.direct import measure_read_bandwidth
from loaders.json_files import read_object
from scheduler.machine.machine import Machine
from scheduler.machine.torch_build import torch_build

FILE = "measurements.json"
MAX_BYTES = 1_000_000
VALID_FOR = timedelta(days=7)
FASTEST_DISK = 16e9  # bytes per second over four lanes of PCIe 5
FASTEST_CACHED_DISK = 4e9  # through the page cache; anything faster was already in it
BLOCK_BYTES = 512  # the unit of `st_blocks`

Figures = dict[str, float]


def recall(subject: str, conditions: str) -> Figures | None:
    """The figures measured for `subject` under `conditions`; None if there are none or only old ones."""
    entry = _read().get(subject)
    try:
        age = datetime.now(timezone.utc) - datetime.fromisoformat(entry["date"])  # type: ignore[index]
        figures = {str(name): float(value) for name, value in entry["figures"].items()}  # type: ignore[index]
        fresh = entry["conditions"] == conditions and abs(age) <= VALID_FOR  # type: ignore[index]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    return figures if fresh and all(0 < value < math.inf for value in figures.values()) else None


def remember(subject: str, conditions: str, figures: Figures) -> None:
    """Store new measurements, if the user's cache can be written."""
    directory = cache_directory()
    if directory is None:
        return
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {**_read(), subject: {"conditions": conditions, "date": date, "figures": figures}}
    try:
        write_whole(directory / FILE, json.dumps(record, indent=1) + "\n")
    except OSError:
        return


def read_bandwidth(files: Iterable[Path], chunk_bytes: int) -> float | None:
    """Read bandwidth of the disk that holds `files`, in bytes per second; measured in half a second unless known.

    None if the disk itself was not measured: the page cache answered, or the files are sparse.
    """
    paths = list(files)
    subject, conditions = f"disk {paths[0].stat().st_dev}", f"reads of {chunk_bytes} bytes"
    known = recall(subject, conditions)
    if known is not None and known.get("bytes_per_second", math.inf) <= FASTEST_DISK:
        return known["bytes_per_second"]
    if any(_is_sparse(path) for path in paths):
        return None
    measured = measure_read_bandwidth(paths, chunk_bytes=chunk_bytes)
    if measured.bytes_per_second > (FASTEST_DISK if measured.direct else FASTEST_CACHED_DISK):
        return None
    remember(subject, conditions, {"bytes_per_second": measured.bytes_per_second})
    return measured.bytes_per_second


def _is_sparse(path: Path) -> bool:
    """Whether less than half of a file is stored, so that reads skip the disk. Some filesystems report 0 blocks."""
    status = path.stat()
    return 0 < getattr(status, "st_blocks", 0) * BLOCK_BYTES < status.st_size / 2


def speed_subject(machine: Machine) -> str:
    """The subject under which the figures of `with_measured_speed` are kept."""
    return f"device {machine.uuid or machine.device_name}"


def speed_conditions(machine: Machine, dtype: str) -> str:
    """The conditions that must not change: driver and PyTorch determine the kernels, cores the speed of a CPU."""
    software = f"driver {machine.driver}, torch {torch_build().version}"
    return f"{software}, {dtype}, {machine.cores} cores, products, attention and passes"


def with_known_speed(machine: Machine, dtype: str) -> Machine:
    """`machine` with the speed of its device as measured in earlier runs, if that is still valid."""
    figures = recall(speed_subject(machine), speed_conditions(machine, dtype))
    return with_measured_speed(machine, figures) if figures else machine


def with_measured_speed(machine: Machine, figures: Figures) -> Machine:
    """`machine` with measured figures (named as its fields) in place of estimated and unknown ones."""
    speeds = (
        "link_bandwidth",
        "pageable_bandwidth",
        "flops",
        "memory_bandwidth",
        "product_bandwidth",
        "attention_flops",
    )
    fields = (*speeds, "pass_seconds", "layer_seconds")
    known: dict[str, Any] = {name: figures[name] for name in fields if name in figures}
    return replace(machine, **known, estimated=tuple(name for name in machine.estimated if name not in known))


def _read() -> dict[str, Any]:
    """The whole record; empty if there is none or it cannot be read."""
    directory = cache_directory()
    if directory is None:
        return {}
    try:
        return read_object(directory / FILE, MAX_BYTES)
    except (OSError, ValueError):
        return {}
