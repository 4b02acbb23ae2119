"""What the benchmark writes: a table with its legend, and JSON lines."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, TextIO

import torch

from latency.records import Measurement, TimedReply, percentile
from scheduler.plan.plan import Plan, Tier
from scheduler.sizes import format_size

WIDTH = 8


@dataclass(frozen=True)
class Column:
    """A column of the table: a key of `figures`, how its value is written, and what it means."""

    title: str
    key: str
    write: Callable[[Any], str]
    meaning: str


def write_seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def write_bytes(value: float) -> str:
    """In decimal units."""
    return format_size(int(value))


COLUMNS = (
    Column("mode", "mode", str, "plain: one token per pass, no draft; tree: a draft's tree checked in every pass"),
    Column(
        "s/token", "seconds_per_token_p50", write_seconds, "seconds per token after the first pass, median over replies"
    ),
    Column("p95", "seconds_per_token_p95", write_seconds, "of the column before, 95th percentile over replies"),
    Column(
        "first s", "seconds_to_first_token", write_seconds, "seconds to the first token: prompt, draft and pass; median"
    ),
    Column(
        "tok/pass", "tokens_per_pass", "{:.2f}".format, "tokens per pass: accepted ones and the one every pass adds"
    ),
    Column(
        "pass s", "pass_seconds_p50", write_seconds, "seconds of one pass of the target, verification included, median"
    ),
    Column("p95", "pass_seconds_p95", write_seconds, "of the column before, 95th percentile over passes"),
    Column("pred. s", "predicted_pass_seconds", write_seconds, "seconds of a pass by the cost model, mean over passes"),
    Column("of pass", "prediction_ratio", "{:.0%}".format, "the prediction's share of what passes took, means"),
    Column("draft s", "draft_seconds", write_seconds, "seconds the draft takes to grow one tree, median"),
    Column(
        "streamed", "streamed_bytes", write_bytes, "bytes that cross the link in a pass; the link leads to the device"
    ),
    Column("per s", "bytes_per_second", write_bytes, "streamed bytes over the seconds of passes and drafts"),
    Column("of link", "link_share", "{:.0%}".format, "share of the bandwidth measured in this run that this is"),
    Column("x limit", "limit_ratio", "{:.2f}".format, "median pass over the larger of streaming and computing alone"),
    Column(
        "device", "peak_device_bytes", write_bytes, "most device memory held (on a CPU: weights, caches and workspace)"
    ),
    Column(
        "host", "peak_host_bytes", write_bytes, "most resident memory of this process in this mode, PyTorch included"
    ),
    Column(
        "outputs", "outputs", str, "whether the tokens are those of the plain mode (greedy; sampled ones may differ)"
    ),
)


def figures(measurement: Measurement, outputs: str, speedup: float | None) -> dict[str, Any]:
    """One mode's figures; None where there is nothing to measure. Bytes, seconds, bytes per second."""
    m = measurement
    passes = [step.target_seconds for step in m.steps]
    per_token = [reply.seconds_per_token for reply in m.replies]
    return {
        "mode": m.mode,
        "seconds_per_token_p50": percentile(per_token, 50),
        "seconds_per_token_p95": percentile(per_token, 95),
        "seconds_to_first_token": percentile([reply.seconds_to_first_token for reply in m.replies], 50),
        "tokens_per_pass": m.tokens_per_pass,
        "pass_seconds_p50": percentile(passes, 50),
        "pass_seconds_p95": percentile(passes, 95),
        "predicted_pass_seconds": m.predicted_seconds,
        "prediction_ratio": m.prediction_ratio,
        "draft_seconds": percentile([step.draft_seconds for step in m.steps], 50) if m.plan.draft else None,
        "streamed_bytes": m.streamed_bytes or None,
        "bytes_per_second": m.bytes_per_second,
        "link_bytes_per_second": asdict(m.link),
        "link_measurements": [asdict(link) for link in m.links],
        "link_share": m.link_share,
        "link_seconds": m.link_seconds,
        "compute_seconds": m.compute_seconds,
        "limit_seconds": m.limit_seconds,
        "limit_ratio": m.limit_ratio,
        "peak_device_bytes": m.peak_device_bytes,
        "peak_host_bytes": m.peak_host_bytes,
        "host_bytes_before_loading": m.host_bytes_before,
        "past_page_cache": m.direct if Tier.DISK in m.plan.tiers else None,
        "timed_passes": len(m.steps),
        "speedup": speedup,
        "outputs": outputs,
        "plan": m.plan.as_dict(),
    }


def reply_record(mode: str, reply: TimedReply) -> dict[str, Any]:
    """One reply as a JSON line."""
    return {
        "record": "reply",
        "mode": mode,
        "prompt": reply.prompt,
        "repeat": reply.repeat,
        "token_ids": reply.token_ids,
        "finish_reason": reply.steps[-1].finish_reason,
        "passes": len(reply.steps),
        "seconds_to_first_token": reply.seconds_to_first_token,
        "seconds_per_token": reply.seconds_per_token,
        "draft_seconds": sum(step.draft_seconds for step in reply.steps),
        "target_seconds": sum(step.target_seconds for step in reply.steps),
        "streamed_bytes": sum(step.streamed_bytes for step in reply.steps),
    }


def environment(plan: Plan) -> dict[str, Any]:
    """Versions and device."""
    return {
        "device": plan.device,
        "device_name": plan.device_name,
        "cores": plan.machine.cores,
        "torch_threads": torch.get_num_threads(),
        "host_bytes": plan.machine.host_total,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
    }


class Report:
    """Writes the table row by row to `table`, and JSON lines to `lines` if there is one."""

    def __init__(self, table: TextIO, lines: TextIO | None, markdown: bool):
        self._table, self._lines, self._markdown = table, lines, markdown

    def record(self, record: Mapping[str, Any]) -> None:
        """Write one JSON line."""
        if self._lines:
            print(json.dumps(record), file=self._lines, flush=True)

    def say(self, text: str = "") -> None:
        """Write a line beside the table."""
        print(text, file=self._table, flush=True)

    def say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def begin_table(self) -> None:
        self.say()
        self._row([column.title for column in COLUMNS])
        if self._markdown:
            self._row(["---", *("---:" for _ in COLUMNS[1:])])

    def row(self, values: Mapping[str, Any]) -> None:
        """One mode's row, and its JSON line."""
        self._row(["-" if values[c.key] is None else c.write(values[c.key]) for c in COLUMNS])
        self.record({"record": "mode", **values})

    def legend(self) -> None:
        self.say()
        for before, column in zip((None, *COLUMNS), COLUMNS):
            title = f"{before.title} {column.title}" if column.title == "p95" and before else column.title
            self.say(f"- {title}: {column.meaning}" if self._markdown else f"  {title:<12} {column.meaning}")

        bullet = "-" if self._markdown else " "
        self.say(f"{bullet} kB, MB and GB are powers of 1000; a dash says that there is nothing to measure")

    def _row(self, cells: Sequence[str]) -> None:
        if self._markdown:
            self.say(f"| {' | '.join(cells)} |")
        else:
            self.say(" ".join([f"{cells[0]:<5}", *(f"{cell:>{WIDTH}}" for cell in cells[1:])]))
