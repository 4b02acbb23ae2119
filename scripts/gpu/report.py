"""What is measured, and its report: JSON that is complete after every record, and Markdown tables made from it."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.output import Form, environment, table, versions, written

from loaders.sizes import GIB
from scheduler.machine.machine import Machine

DRY_RUN = "A dry run with tiny shapes: these figures say that the script works, and nothing else."

Values = Mapping[str, Any]
Writer = Callable[[Values], str]


@dataclass(frozen=True)
class Record:
    """One line of the report; seconds, bytes and bytes per second throughout.

    kind: a key of `TABLES`. section: the letter of the section that measured it. values: by name, None where there is
    nothing to say.
    """

    kind: str
    section: str
    values: Values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def as_dict(self) -> dict[str, Any]:
        return {"record": self.kind, "section": self.section, **self.values}


def missing(section: str, what: str, why: str, reason: str) -> Record:
    """Something that was not measured: by choice ("skipped", "out of time") or because it failed ("failed")."""
    return Record("Missing", section, {"what": what, "why": why, "reason": reason})


def _is(key: str, form: Form = str, scale: float | None = None) -> Writer:
    """A value as it is written, scaled before."""
    return lambda values: written(values[key] if values[key] is None or scale is None else values[key] * scale, form)


def _rate(seconds: str) -> Writer:
    return lambda values: written(values["nbytes"] / values[seconds] / 1e9 if values[seconds] else None, ".4g")


def _seconds(key: str) -> Writer:
    return _is(key, ".4g")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


_CAP, _STREAMED = _is("cap", "{:.4g} GiB".format, 1 / GIB), _is("streamed_bytes", ".4g", 1e-9)
_LAYERS: Writer = lambda values: f"{values['streamed_layers']}/{values['layers']}"  # noqa: E731

# By kind of record: the table's title and its columns.
TABLES: dict[str, tuple[str, dict[str, Writer]]] = {
    "Bandwidth": ("Bandwidths", {"path": _is("path"), "GB/s": _is("bytes_per_second", ".2f", 1e-9)}),
    # A pass of the target over a tree of `nodes` nodes, the mean of `passes` in a row; predicted before it ran.
    "StreamedPass": (
        "Streamed passes against the roofline and the prediction",
        {
            "shape": _is("shape"),
            "device cap": _CAP,
            "streamed layers": _LAYERS,
            "nodes": _is("nodes"),
            "GB streamed": _STREAMED,
            "link alone s": _seconds("link_seconds"),
            "compute alone s": _seconds("compute_seconds"),
            "measured s": _seconds("seconds"),
            "/ roofline": _is("ratio", ".3f"),
            "predicted s": _seconds("predicted_seconds"),
            "predicted / measured": _is("predicted_ratio", ".3f"),
        },
    ),
    # Until the host has the first token after a prompt that nothing is known of, which is read in `passes`.
    "FirstToken": (
        "The first token after a prompt",
        {
            "device cap": _CAP,
            "prompt tokens": _is("prompt_tokens"),
            "passes": _is("passes"),
            "s": _seconds("seconds"),
            "/ pass over one token": lambda values: f"{values['seconds'] / values['pass_seconds']:.3f}",
        },
    ),
    # Of a matrix to `nbytes` of bfloat16: by the fused kernel, None where there is none, and in plain torch.
    "Unpacking": (
        "Dequantizing to bfloat16",
        {
            "form": _is("form"),
            "matrix": lambda values: f"{values['rows']} x {values['columns']}",
            "fused GB/s written": _rate("fused_seconds"),
            "plain torch GB/s": _rate("plain_seconds"),
        },
    ),
    # Of `rows` nodes, the median of `runs`.
    "DraftLevel": (
        "Levels of a resident draft",
        {
            "draft": _is("shape"),
            "nodes": _is("rows"),
            "CUDA graphs": _is("graphs", _yes),
            "ms": _is("seconds", ".2f", 1e3),
            "predicted ms": _is("predicted_seconds", ".2f", 1e3),
        },
    ),
    # Replies to the same prompts in one mode. equal_tokens: leading tokens that agree with `reference`, of `compared`.
    "Decoding": (
        "Decoding",
        {
            "what": _is("what"),
            "mode": _is("mode"),
            "dtype": _is("dtype"),
            "temperature": _is("temperature", "g"),
            "tokens": _is("tokens"),
            "tokens/pass": _is("tokens_per_pass", ".2f"),
            "s/token": _seconds("seconds_per_token"),
            "draft s": _seconds("draft_seconds"),
            "pass s": _seconds("target_seconds"),
            "x plain": _is("speedup", ".2f"),
            "equal tokens": lambda values: written(values["compared"], f"{values['equal_tokens']} of {{}}".format),
            "as": _is("reference"),
        },
    ),
    # A pass over one token by one program, on the same layers in the same places.
    "Offloading": (
        "A pass over one token, beside another program",
        {
            "program": _is("program"),
            "streamed layers": _LAYERS,
            "GB streamed": _STREAMED,
            "s": _seconds("seconds"),
            "loading s": _is("load_seconds", ".1f"),
            "x ours": _is("times_slower", ".2f"),
            "same token": _is("same_token", _yes),
        },
    ),
    "Missing": (
        "Not measured",
        {"what": _is("what"), "why": _is("why"), "reason": lambda values: values["reason"].replace("\n", " ")},
    ),
}


class Report:
    """Writes `<date>-<gpu>.json` and `.md` into a directory, anew after every record."""

    def __init__(self, directory: Path, date: str, machine: Machine, dry_run: bool, minutes: float):
        directory.mkdir(parents=True, exist_ok=True)
        base = f"{date}-{_slug(machine.device_name)}{'-dry-run' if dry_run else ''}"
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
            rows = [record.values for record in self.records if record.kind == kind]
            if rows:
                yield f"\n## {title}\n"
                yield from table([*columns], [[write(values) for write in columns.values()] for values in rows])


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower().replace("nvidia", "")).split()[:6])


def _plain(value: object) -> object:
    """What JSON does not know: sets and paths."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
