"""Cells that are measured, kept in a file of JSON lines: what ran, then every cell as soon as it is measured."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from toolkit.output import JsonLines, environment

from comparison.cells import Cell, Measured
from comparison.measure import Workload
from offload_runtime.errors import UsageError

FORMAT = "sequoia-offload comparison, version 1"


class Cells:
    """setup: what all cells have in common; cells of another setup are refused. resumed: files whose cells count.

    file: where lines go, as long as `resources` are open; None keeps nothing.
    """

    def __init__(self, setup: Mapping[str, Any], file: Path | None, resumed: Sequence[Path], resources: ExitStack):
        self._setup = dict(setup)
        self.measured: dict[Cell, Measured] = {}
        for path in resumed:
            self._take_up(path)
        if file is not None and file in resumed and file.exists():
            _drop_half_line(file)
        self._lines = JsonLines(file, resources, append=file in resumed)
        self._lines.write("run", {"format": FORMAT, "setup": self._setup, **environment()})

    def has(self, cell: Cell, workload: Workload) -> bool:
        """Whether as much as this workload asks for was measured of a cell."""
        measured = self.measured.get(cell)
        return measured is not None and workload.is_done(cell, len(measured.replies), measured.passes)

    def add(self, measured: Measured) -> None:
        self.measured[measured.cell] = measured
        self._lines.write("cell", measured.as_record())

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


def _drop_half_line(path: Path) -> None:
    """Cut the file behind its last complete line."""
    content = path.read_bytes()
    with path.open("rb+") as file:
        file.truncate(content.rfind(b"\n") + 1)
