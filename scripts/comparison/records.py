"""JSON lines: what ran, then one line for every cell as soon as it is measured."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from comparison.cells import Cell, Measured
from comparison.measure import Workload
from offload_runtime.errors import UsageError

FORMAT = "sequoia-offload comparison, version 1"


def environment() -> dict[str, Any]:
    """Versions and the machine."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
    }


class Cells:
    """Cells that are measured, kept in a file of JSON lines where there is one.

    setup: what all cells have in common; cells of another setup are refused. resumed: files whose cells count.
    """

    def __init__(self, setup: Mapping[str, Any], about: Mapping[str, Any], file: Path | None, resumed: Sequence[Path]):
        self._setup = dict(setup)
        self.measured: dict[Cell, Measured] = {}
        for path in resumed:
            self._take_up(path)
        self._lines = _open(file, file in resumed) if file else None
        if self._lines:
            self._write({"record": "run", "format": FORMAT, "setup": self._setup, **about})

    def has(self, cell: Cell, workload: Workload) -> bool:
        """Whether as much as this workload asks for was measured of a cell."""
        measured = self.measured.get(cell)
        return measured is not None and workload.is_done(cell, len(measured.replies), measured.passes)

    def add(self, measured: Measured) -> None:
        self.measured[measured.cell] = measured
        self._write(measured.as_record())

    def close(self) -> None:
        if self._lines:
            self._lines.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._lines:
            print(json.dumps(record), file=self._lines, flush=True)

    def _take_up(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return  # nothing was measured yet
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--resume {path}: cannot be read ({error})") from error
        complete, _, _ = text.rpartition("\n")  # a run that was ended may leave half a line
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                self._take(json.loads(line), path)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UsageError(f"--resume {path}: line {number} is none of this program ({error})") from error

    def _take(self, record: Mapping[str, Any], path: Path) -> None:
        if record["record"] == "cell":
            measured = Measured.from_record(record)
            self.measured[measured.cell] = measured
            return
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        for name, value in self._setup.items():
            if record["setup"][name] != value:
                raise UsageError(
                    f"--resume {path}: it was measured with {name} {record['setup'][name]}, this run has {value}"
                )


def _open(path: Path, goes_on: bool) -> TextIO:
    try:
        if goes_on and path.exists():
            _drop_half_line(path)
        return path.open("a" if goes_on else "w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {path}: cannot be written ({error.strerror})") from error


def _drop_half_line(path: Path) -> None:
    """Cut the file behind its last complete line."""
    content = path.read_bytes()
    with path.open("rb+") as file:
        file.truncate(content.rfind(b"\n") + 1)
