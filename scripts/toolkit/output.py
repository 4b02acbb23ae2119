"""What is written: JSON lines, Markdown tables, numbers, progress, and what ran where."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from loaders.cache_directory import write_whole
from loaders.sizes import format_size
from offload_runtime.errors import UsageError

Note = Callable[[str], None]
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")


def progress(quiet: bool) -> Note:
    """Writes lines to stderr, or nothing."""
    return lambda text: None if quiet else print(text, file=sys.stderr, flush=True)


class JsonLines:
    """A file of JSON lines that is open as long as `resources` are; without a target, nothing is written.

    target: a path, or "-" for stdout. Raises UsageError where it cannot be opened.
    """

    def __init__(self, target: str | Path | None, resources: ExitStack, append: bool = False):
        self.file: TextIO | None = sys.stdout if target == "-" else None
        if target in (None, "-"):
            return
        try:
            self.file = resources.enter_context(
                Path(str(target)).open("a" if append else "w", encoding="utf-8")  # noqa: SIM115  # resources close it
            )
        except OSError as error:
            raise UsageError(f"--json {target}: cannot be written ({error.strerror})") from error

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """One line, as soon as it is known."""
        if self.file:
            print(json.dumps({"record": kind, **record}), file=self.file, flush=True)


def say(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Write lines at once."""
    for line in lines:
        print(line, file=file, flush=True)


def write_file(option: str, path: Path, text: str) -> None:
    """Write a text file that an option names, whole or not at all. Raises UsageError."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror})") from error


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield from table_head(titles)
    yield from map(table_row, rows)


def table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


Form = str | Callable[[Any], str]
"""How a value is written: a format, or a function."""
Row = Mapping[str, Any]


def written(value: Any, form: Form) -> str:
    """A value in a form, a dash for None."""
    return "-" if value is None else form(value) if callable(form) else format(value, form)


@dataclass(frozen=True)
class Column:
    """A column of a table with a legend: which value of a row it shows, in which form, and what it means."""

    title: str
    key: str
    form: Form
    meaning: str


def table_head(titles: Sequence[str]) -> Iterator[str]:
    """The first lines of a Markdown table; all columns but the first are aligned to the right."""
    yield table_row(titles)
    yield table_row(["---", *["---:"] * (len(titles) - 1)])


def cells(columns: Iterable[Column], row: Row) -> list[str]:
    return [written(row[column.key], column.form) for column in columns]


def legend(columns: Iterable[Column]) -> Iterator[str]:
    yield from (f"- {column.title}: {column.meaning}" for column in columns)


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def nbytes(value: float) -> str:
    """In decimal units."""
    return format_size(int(value))


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Versions and the machine."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        **versions(),
    }
