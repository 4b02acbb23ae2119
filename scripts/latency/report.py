"""What the benchmark writes: a table with its legend, what to make of it, and records for JSON lines."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from toolkit.output import Column, JsonLines, cells, legend, nbytes, say, seconds, table_head, table_row, versions
from toolkit.replies import TimedReply, step_seconds

from latency.measure import WARM_UP_TOKENS, Workload
from latency.measurement import Measurement
from latency.timeline import Timeline
from scheduler.plan.plan import Plan, Tier

RESIDENT_NOTE = (
    "Nothing is streamed: a tree is made for passes that wait for the link. --device-memory SIZE lets layers stream."
)
LOOPS_NOTE = "The demonstration's greedy text soon repeats itself and is easy to guess; see --temperature 0.7 as well."
RANDOM_NOTE = "Random weights: tokens per pass and tokens per second mean nothing, the seconds of passes and drafts do."
ROUNDING_NOTE = "In {dtype} a pass over a tree rounds differently than one over a token: outputs are equal up to ties."


COLUMNS = (
    Column("mode", "mode", str, "plain: one token per pass, no draft; tree: a draft's tree checked in every pass"),
    Column("s/token", "seconds_per_token_p50", seconds, "seconds per token after the first pass, median over replies"),
    Column("p95", "seconds_per_token_p95", seconds, "of the column before, 95th percentile over replies"),
    Column("first s", "seconds_to_first_token", seconds, "seconds to the first token: prompt, draft and pass; median"),
    Column("tok/pass", "tokens_per_pass", ".2f", "tokens per pass: accepted ones and the one every pass adds"),
    Column("pass s", "pass_seconds_p50", seconds, "seconds of one pass of the target, verification included, median"),
    Column("p95", "pass_seconds_p95", seconds, "of the column before, 95th percentile over passes"),
    Column("pred. s", "predicted_pass_seconds", seconds, "seconds of a pass by the cost model, mean over passes"),
    Column("of pass", "prediction_ratio", ".0%", "the prediction's share of what passes took, means"),
    Column("draft s", "draft_seconds", seconds, "seconds the draft takes to grow one tree, median"),
    Column("streamed", "streamed_bytes", nbytes, "bytes that cross the link in a pass; the link leads to the device"),
    Column("per s", "bytes_per_second", nbytes, "streamed bytes over the seconds of passes and drafts"),
    Column("of link", "link_share", ".0%", "share of the bandwidth measured in this run that this is"),
    Column("x limit", "limit_ratio", ".2f", "median pass over the larger of streaming and computing alone"),
    Column("device", "peak_device_bytes", nbytes, "most device memory held (a CPU: weights, caches and workspace)"),
    Column("host", "peak_host_bytes", nbytes, "most resident memory of this process in this mode, PyTorch included"),
    Column("outputs", "outputs", str, "whether the tokens are the plain mode's (greedy; sampled ones may differ)"),
)


@dataclass(frozen=True)
class Report:
    """Writes the table row by row to `file`, and JSON lines."""

    file: TextIO
    lines: JsonLines

    def say(self, lines: Iterator[str] | list[str]) -> None:
        """Write lines beside the table."""
        say(lines, self.file)

    def begin(self) -> None:
        self.say(["", *table_head([column.title for column in COLUMNS])])

    def row(self, figures: Mapping[str, Any]) -> None:
        """One mode's row, and its JSON line."""
        self.say([table_row(cells(COLUMNS, figures))])
        self.lines.write("mode", figures)

    def legend(self) -> None:
        self.say([*legend(COLUMNS), "- kB, MB and GB are powers of 1000; a dash: there is nothing to measure"])


def reply_record(mode: str, reply: TimedReply) -> dict[str, Any]:
    """One reply as a JSON line."""
    sums = ("draft_seconds", "target_seconds", "streamed_bytes")
    return {
        "mode": mode,
        "prompt": reply.prompt,
        "repeat": reply.repeat,
        "token_ids": reply.token_ids,
        "finish_reason": reply.steps[-1].finish_reason,
        "passes": len(reply.steps),
        "seconds_to_first_token": reply.seconds_to_first_token,
        "seconds_per_token": reply.seconds_per_token,
        **{name: sum(getattr(step, name) for step in reply.steps) for name in sums},
    }


def heading(plan: Plan, stored_dtype: str, workload: Workload, layers: int, distinct_layers: int) -> Iterator[str]:
    """What runs on what."""
    names = plan.model if plan.draft is None else f"{plan.model} drafted by {plan.draft}"
    yield f"{names}: weights in {stored_dtype}, computed in {plan.dtype}"
    packages = ", ".join(f"{name} {number}" for name, number in versions(("torch", "transformers")).items())
    threads = f"{plan.machine.cores} cores, {torch.get_num_threads()} threads"
    yield f"{plan.device_name}, {threads}; {packages}, Python {platform.python_version()}, {platform.system()}"
    temperature = workload.sampling["temperature"]
    seeds = "fresh seeds" if workload.seed is None else f"seeds from {workload.seed}"
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}, {seeds}"
    yield (
        f"{len(workload.prompts)} prompts x {workload.repeats} repeats, at most {workload.max_new_tokens} new tokens, "
        f"{how}; not counted: {workload.warmup} warm-up x {min(WARM_UP_TOKENS, workload.max_new_tokens)} tokens"
    )
    if distinct_layers < layers:
        yield (
            f"{layers} layers share {distinct_layers} on disk and in host memory: the same bytes cross the link as "
            f"with {layers} different ones"
        )


def mode_lines(m: Measurement, figures: Mapping[str, Any]) -> Iterator[str]:
    """What streamed, how fast the link is, and how far a pass is from what the machine can do."""
    layers = len(m.plan.tiers)
    streamed = layers - m.plan.tiers.count(Tier.DEVICE)
    if not streamed:
        yield f"{m.mode}: all {layers} layers stay on the device, nothing is streamed"
        return
    cache = "past" if m.direct else "through"
    origins = {Tier.HOST: "from host memory", Tier.DISK: f"from disk {cache} the page cache"}
    origin = " and ".join(text for tier, text in origins.items() if tier in m.plan.tiers)
    rates = ", ".join(f"{name} {nbytes(rate)}/s" for name, rate in asdict(m.link).items() if rate)
    link = f"{rates} (the most of {len(m.links)} measurements)" if rates else "link not measured"
    yield f"{m.mode}: {streamed} of {layers} layers streamed {origin}; {link}"
    if figures["limit_ratio"]:
        yield (
            f"  streaming alone {seconds(figures['link_seconds'])} s, computing alone "
            f"{seconds(figures['compute_seconds'])} s; the median pass takes {figures['limit_ratio']:.2f} x the larger "
            "of the two"
        )


def timeline_line(mode: str, timeline: Timeline | None, file: Path) -> str:
    """Where a timeline is, and how much of its time link and device did nothing."""
    if timeline is None:
        return f"{mode}: no step after the first, so there is no timeline"
    length, link, device = timeline.end - timeline.begin, timeline.link_idle, timeline.device_idle
    return f"{mode}: timeline of {seconds(length)} s in {file}: link idle {link:.0%}, device idle {device:.0%}"


def compare(plain: Measurement, tree: Measurement, greedy: bool) -> str:
    """Whether both modes wrote the same tokens."""
    if not greedy:
        return "sampled"
    differing = sum(a.token_ids != b.token_ids for a, b in zip(plain.replies, tree.replies, strict=True))
    return f"{differing}/{len(plain.replies)} differ" if differing else "equal"


def remarks(tree: Measurement, figures: Mapping[str, Any], random: bool, demonstration: bool) -> Iterator[str]:
    """What to make of the tree's figures."""
    outputs, gain = figures["outputs"], figures["speedup"]
    if gain:
        known = {"sampled": "not compared: sampled", "equal": "equal, token for token"}
        explained = known.get(outputs, f"{outputs} from plain decoding")
        yield f"tree: {gain:.2f} x the tokens per second of plain decoding; outputs: {explained}"
    if not tree.plan.slots:
        yield RESIDENT_NOTE
    if random:
        yield RANDOM_NOTE
    if demonstration and outputs != "sampled":
        yield LOOPS_NOTE
    if "differ" in outputs and tree.plan.dtype != "float32":
        yield ROUNDING_NOTE.format(dtype=tree.plan.dtype)


def progress_line(mode: str, reply: TimedReply, done: int, replies: int) -> str:
    """That a reply is finished."""
    tokens, took = len(reply.token_ids), sum(map(step_seconds, reply.steps))
    return f"{mode} {done}/{replies}: {tokens} tokens in {seconds(took)} s"
