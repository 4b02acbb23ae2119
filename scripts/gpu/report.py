"""The report: JSON that is complete after every record, and Markdown tables made from it."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gpu.records import (
    Bandwidth,
    Decoding,
    DraftLevel,
    FirstToken,
    Missing,
    Offloading,
    Record,
    StreamedPass,
    Unpacking,
)
from scheduler.machine.machine import Machine
from scheduler.sizes import GIB

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
DRY_RUN = "A dry run with tiny shapes: these figures say that the script works, and nothing else."

Column = tuple[str, Callable[[Any], str]]
TABLES: dict[type[Record], tuple[str, tuple[Column, ...]]] = {
    Bandwidth: (
        "Bandwidths",
        (("path", lambda r: r.path), ("GB/s", lambda r: f"{r.bytes_per_second / 1e9:.2f}")),
    ),
    StreamedPass: (
        "Streamed passes against the roofline and the prediction",
        (
            ("shape", lambda r: r.shape),
            ("device cap", lambda r: f"{r.cap / GIB:.4g} GiB"),
            ("streamed layers", lambda r: f"{r.streamed_layers}/{r.streamed_layers + r.resident_layers}"),
            ("nodes", lambda r: str(r.nodes)),
            ("GB streamed", lambda r: f"{r.streamed_bytes / 1e9:.4g}"),
            ("link alone s", lambda r: _seconds(r.link_seconds)),
            ("compute alone s", lambda r: _seconds(r.compute_seconds)),
            ("measured s", lambda r: _seconds(r.seconds)),
            ("/ roofline", lambda r: f"{r.ratio:.3f}"),
            ("predicted s", lambda r: _seconds(r.predicted_seconds)),
            ("predicted / measured", lambda r: _number(r.predicted_ratio, ".3f")),
        ),
    ),
    FirstToken: (
        "The first token after a prompt",
        (
            ("device cap", lambda r: f"{r.cap / GIB:.4g} GiB"),
            ("prompt tokens", lambda r: str(r.prompt_tokens)),
            ("passes", lambda r: str(r.passes)),
            ("s", lambda r: _seconds(r.seconds)),
            ("/ pass over one token", lambda r: f"{r.seconds / r.pass_seconds:.3f}"),
        ),
    ),
    Unpacking: (
        "Decoding packed weights to bfloat16",
        (
            ("form", lambda r: r.form),
            ("matrix", lambda r: f"{r.rows} x {r.columns}"),
            ("fused GB/s written", lambda r: _rate(r.nbytes, r.fused_seconds)),
            ("plain torch GB/s", lambda r: _rate(r.nbytes, r.plain_seconds)),
        ),
    ),
    DraftLevel: (
        "Levels of a resident draft",
        (
            ("draft", lambda r: r.shape),
            ("nodes", lambda r: str(r.rows)),
            ("CUDA graphs", lambda r: "yes" if r.graphs else "no"),
            ("ms", lambda r: f"{1e3 * r.seconds:.2f}"),
            ("predicted ms", lambda r: _number(1e3 * r.predicted_seconds if r.predicted_seconds else None, ".2f")),
        ),
    ),
    Decoding: (
        "Decoding",
        (
            ("what", lambda r: r.what),
            ("mode", lambda r: r.mode),
            ("dtype", lambda r: r.dtype),
            ("temperature", lambda r: f"{r.temperature:g}"),
            ("tokens", lambda r: str(r.tokens)),
            ("tokens/pass", lambda r: f"{r.tokens_per_pass:.2f}"),
            ("s/token", lambda r: _seconds(r.seconds_per_token)),
            ("draft s", lambda r: _seconds(r.draft_seconds)),
            ("pass s", lambda r: _seconds(r.target_seconds)),
            ("x plain", lambda r: _number(r.speedup, ".2f")),
            ("equal tokens", lambda r: "-" if r.compared is None else f"{r.equal_tokens} of {r.compared}"),
            ("as", lambda r: r.reference or "-"),
        ),
    ),
    Offloading: (
        "A pass over one token, beside another program",
        (
            ("program", lambda r: r.program),
            ("streamed layers", lambda r: f"{r.streamed_layers}/{r.layers}"),
            ("GB streamed", lambda r: f"{r.streamed_bytes / 1e9:.4g}"),
            ("s", lambda r: _seconds(r.seconds)),
            ("loading s", lambda r: f"{r.load_seconds:.1f}"),
            ("x ours", lambda r: _number(r.times_slower, ".2f")),
            ("same token", lambda r: {None: "-", True: "yes", False: "no"}[r.same_token]),
        ),
    ),
    Missing: (
        "Not measured",
        (("what", lambda r: r.what), ("why", lambda r: r.why), ("reason", lambda r: r.reason.replace("\n", " "))),
    ),
}


class Report:
    """Writes `<date>-<gpu>.json` and `.md` into a directory, anew after every record."""

    def __init__(self, directory: Path, date: str, machine: Machine, dry_run: bool, minutes: float):
        directory.mkdir(parents=True, exist_ok=True)
        self._base = directory / f"{date}-{_slug(machine.device_name)}{'-dry-run' if dry_run else ''}"
        self._dry_run, self._machine = dry_run, machine
        self._head = {
            "date": date,
            "dry_run": dry_run,
            "minutes": minutes,
            "machine": asdict(machine),
            "environment": environment(),
        }
        self.records: list[Record] = []
        self._write()

    @property
    def files(self) -> tuple[Path, Path]:
        return self._base.with_name(f"{self._base.name}.json"), self._base.with_name(f"{self._base.name}.md")

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._write()

    def finish(self, section_seconds: dict[str, float]) -> None:
        """Note how long each section took."""
        self._head["section_seconds"] = section_seconds
        self._write()

    def _write(self) -> None:
        json_file, markdown_file = self.files
        content = {**self._head, "records": [record.as_dict() for record in self.records]}
        json_file.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")
        markdown_file.write_text("\n".join(self._markdown()) + "\n", encoding="utf-8")

    def _markdown(self) -> Iterable[str]:
        yield f"# Measured on {self._machine.device_name}, {self._head['date']}"
        yield ""
        if self._dry_run:
            yield f"**{DRY_RUN}**\n"
        packages = ", ".join(f"{name} {value}" for name, value in environment().items() if value)
        yield f"{packages}; {self._machine.cores} cores, {self._machine.host_total / GIB:.0f} GiB of host memory."
        yield "GB are powers of 1000. The roofline of a pass is the larger of its bytes over the pinned bandwidth"
        yield "measured just before, and the same pass computed with nothing streaming."
        for kind, (title, columns) in TABLES.items():
            rows = [record for record in self.records if type(record) is kind]
            if rows:
                yield f"\n## {title}\n"
                yield from table(columns, rows)


def table(columns: Sequence[Column], rows: Iterable[Record]) -> Iterable[str]:
    """A Markdown table."""
    yield f"| {' | '.join(title for title, _ in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(write(row) for _, write in columns)} |"


def environment() -> dict[str, str | None]:
    """Versions, the driver's excepted: NVML's answers stand in the machine record."""
    return {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower().replace("nvidia", "")).split()[:6])


def _seconds(value: float | None) -> str:
    return _number(value, ".4g")


def _rate(nbytes: int, seconds: float | None) -> str:
    return _number(nbytes / seconds / 1e9 if seconds else None, ".4g")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plain(value: object) -> object:
    """What JSON does not know: sets and paths."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
