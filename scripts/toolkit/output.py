"""What is written: JSON lines, Markdown tables, numbers, progress, and what ran where."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loaders.sizes import format_size

Note = Callable[[str], None]
Row = Mapping[str, Any]
Write = Callable[[str, Row], None]
Form = str | Callable[[Any], str]
"""How a value is written: a format, or a function."""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")


def progress(quiet: bool) -> Note:
    """Writes lines to stderr, or nothing."""
    return lambda text: None if quiet else print(text, file=sys.stderr, flush=True)


@contextmanager
def json_lines(target: str | Path | None, mode: str = "w") -> Iterator[Write]:
    """Writes records of a kind to a file as JSON lines; "-" is stdout, without a target nothing is written."""
    if target == "-":
        yield lambda kind, record: print(json.dumps({"record": kind, **record}), flush=True)
        return
    with Path(target or os.devnull).open(mode, encoding="utf-8") as file:
        yield lambda kind, record: print(json.dumps({"record": kind, **record}), file=file, flush=True)


@dataclass(frozen=True)
class Column:
    """A column of a table: what it shows of a row (a key, or a function of the row), in which form, what it means."""

    title: str
    value: str | Callable[[Row], Any]
    form: Form = str
    meaning: str = ""

    def cell(self, row: Row) -> str:
        """A dash for what there is not."""
        value = self.value(row) if callable(self.value) else row.get(self.value)
        return "-" if value is None else self.form(value) if callable(self.form) else format(value, self.form)


def table(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table; all columns but the first are aligned to the right."""
    for cells in (titles, ["---", *["---:"] * (len(titles) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


def table_of(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[str]:
    return table([column.title for column in columns], ([column.cell(row) for column in columns] for row in rows))


def legend(columns: Iterable[Column]) -> Iterator[str]:
    return (f"- {column.title}: {column.meaning}" for column in columns)


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def nbytes(value: float) -> str:
    """In decimal units."""
    return format_size(int(value))


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    return {name: version(name) for name in PACKAGES if find_spec(name)}


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
