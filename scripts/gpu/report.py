"""What is measured, and its report: JSON that is complete after every record, and Markdown tables made from it."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.output import Column, Row, environment, table_of, versions

from loaders.sizes import GIB
from scheduler.machine.machine import Machine

DRY_RUN = "A dry run with tiny shapes: these figures say that the script works, and nothing else."


@dataclass(frozen=True)
class Record:
    """One line of the report; seconds, bytes and bytes per second throughout.

    kind: a key of `TABLES`. section: the letter of the section that measured it. values: by name, None where there is
    nothing to say.
    """

    kind: str
    section: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def as_dict(self) -> dict[str, Any]:
        return {"record": self.kind, "section": self.section, **self.values}


def missing(section: str, what: str, why: str, reason: str) -> Record:
    """Something that was not measured: by choice ("skipped", "out of time") or because it failed ("failed")."""
    return Record("Missing", section, {"what": what, "why": why, "reason": reason.replace("\n", " ")})


def _scaled(key: str, factor: float) -> Callable[[Row], float | None]:
    return lambda row: None if row[key] is None else row[key] * factor


def _rate(key: str) -> Callable[[Row], float | None]:
    return lambda row: row["nbytes"] / row[key] / 1e9 if row[key] else None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


_CAP = Column("device cap", _scaled("cap", 1 / GIB), "{:.4g} GiB".format)
_STREAMED = Column("GB streamed", _scaled("streamed_bytes", 1e-9), ".4g")
_LAYERS = Column("streamed layers", lambda row: f"{row['streamed_layers']}/{row['layers']}")

# By kind of record: the table's title and its columns.
TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "Bandwidth": ("Bandwidths", (Column("path", "path"), Column("GB/s", _scaled("bytes_per_second", 1e-9), ".2f"))),
    # A pass of the target over a tree of `nodes` nodes, the mean of `passes` in a row; predicted before it ran.
    "StreamedPass": (
        "Streamed passes against the roofline and the prediction",
        (
            Column("shape", "shape"),
            *(_CAP, _LAYERS),
            Column("nodes", "nodes"),
            _STREAMED,
            Column("link alone s", "link_seconds", ".4g"),
            Column("compute alone s", "compute_seconds", ".4g"),
            Column("measured s", "seconds", ".4g"),
            Column("/ roofline", "ratio", ".3f"),
            Column("predicted s", "predicted_seconds", ".4g"),
            Column("predicted / measured", "predicted_ratio", ".3f"),
        ),
    ),
    # Until the host has the first token after a prompt that nothing is known of, which is read in `passes`.
    "FirstToken": (
        "The first token after a prompt",
        (
            _CAP,
            Column("prompt tokens", "prompt_tokens"),
            Column("passes", "passes"),
            Column("s", "seconds", ".4g"),
            Column("/ pass over one token", lambda row: row["seconds"] / row["pass_seconds"], ".3f"),
        ),
    ),
    # Of a matrix to `nbytes` of bfloat16: by the fused kernel, None where there is none, and in plain torch.
    "Unpacking": (
        "Dequantizing to bfloat16",
        (
            Column("form", "form"),
            Column("matrix", lambda row: f"{row['rows']} x {row['columns']}"),
            Column("fused GB/s written", _rate("fused_seconds"), ".4g"),
            Column("plain torch GB/s", _rate("plain_seconds"), ".4g"),
        ),
    ),
    # Of `rows` nodes, the median of `runs`.
    "DraftLevel": (
        "Levels of a resident draft",
        (
            Column("draft", "shape"),
            Column("nodes", "rows"),
            Column("CUDA graphs", "graphs", _yes),
            Column("ms", _scaled("seconds", 1e3), ".2f"),
            Column("predicted ms", _scaled("predicted_seconds", 1e3), ".2f"),
        ),
    ),
    # Replies to the same prompts in one mode. equal_tokens: leading tokens that agree with `reference`, of `compared`.
    "Decoding": (
        "Decoding",
        (
            *(Column(name, name) for name in ("what", "mode", "dtype")),
            Column("temperature", "temperature", "g"),
            Column("tokens", "tokens"),
            Column("tokens/pass", "tokens_per_pass", ".2f"),
            Column("s/token", "seconds_per_token", ".4g"),
            Column("draft s", "draft_seconds", ".4g"),
            Column("pass s", "target_seconds", ".4g"),
            Column("x plain", "speedup", ".2f"),
            Column("equal tokens", lambda row: row["compared"] and f"{row['equal_tokens']} of {row['compared']}"),
            Column("as", "reference"),
        ),
    ),
    # A pass over one token by one program, on the same layers in the same places.
    "Offloading": (
        "A pass over one token, beside another program",
        (
            Column("program", "program"),
            *(_LAYERS, _STREAMED),
            Column("s", "seconds", ".4g"),
            Column("loading s", "load_seconds", ".1f"),
            Column("x ours", "times_slower", ".2f"),
            Column("same token", "same_token", _yes),
        ),
    ),
    "Missing": ("Not measured", tuple(Column(name, name) for name in ("what", "why", "reason"))),
}


class Report:
    """Writes `<date>-<gpu>.json` and `.md` into a directory, anew after every record."""

    def __init__(self, directory: Path, date: str, machine: Machine, dry_run: bool, minutes: float):
        directory.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() else " " for c in machine.device_name.lower().replace("nvidia", ""))
        base = f"{date}-{'-'.join(name.split()[:6])}{'-dry-run' if dry_run else ''}"
        self.files = directory / f"{base}.json", directory / f"{base}.md"
        self._machine, self.records = machine, list[Record]()
        where = {"machine": asdict(machine), "environment": environment()}
        self._head = {"date": date, "dry_run": dry_run, "minutes": minutes, **where}
        self._write()

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

    def _markdown(self) -> Iterator[str]:
        yield f"# Measured on {self._machine.device_name}, {self._head['date']}"
        yield ""
        if self._head["dry_run"]:
            yield f"**{DRY_RUN}**\n"
        packages = ", ".join(f"{name} {value}" for name, value in versions().items())
        yield f"{packages}; {self._machine.cores} cores, {self._machine.host_total / GIB:.0f} GiB of host memory."
        yield "GB are powers of 1000. The roofline of a pass is the larger of its bytes over the pinned bandwidth"
        yield "measured just before, and the same pass computed with nothing streaming."
        for kind, (title, columns) in TABLES.items():
            if rows := [record.values for record in self.records if record.kind == kind]:
                yield f"\n## {title}\n"
                yield from table_of(columns, rows)


def _plain(value: object) -> object:
    """What JSON does not know: sets and paths."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
