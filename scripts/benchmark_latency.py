"""Seconds per token of plain streamed decoding and of tree decoding, side by side in one process.

    python scripts/benchmark_latency.py --help

Both modes load under the same limits, one after the other, and answer the same prompts. Beside each result stands what
bounds it, measured in the same run: the bandwidth of the link and the computing time. With --seed sampled replies can
be repeated, and the tree is the planned one; without, it is chosen by measured times.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.output import Column, Write, environment, json_lines, legend, nbytes, progress, seconds, table_of
from toolkit.workload import benchmark_parser, benchmark_prompts, benchmarked, check_shape

from loaders.cache_directory import write_whole
from loaders.io.direct import measure_read_bandwidth
from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import sampling_options
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.plan.plan import Plan, Tier

if TYPE_CHECKING:  # what needs torch is imported where it is used: `--help` answers before that
    from latency.measure import Measurement, Workload
    from toolkit.replies import TimedReply

DESCRIPTION = """\
Plain streamed decoding and tree decoding, one after the other, on the same prompts and within the same limits.
Prints a Markdown table whose every term is explained below it, and JSON lines on request. Needs no model files: without
--model the bundled demonstration pair runs, and --shape makes random weights in the shape of a known model."""
EXAMPLES = """examples:
  python scripts/benchmark_latency.py                                  the demonstration pair
  python scripts/benchmark_latency.py -m DIR -d DRAFT_DIR              a model and its draft
  python scripts/benchmark_latency.py -m DIR --cold                    weights read from the disk, never from its cache
  python scripts/benchmark_latency.py --shape tiny                     a model of a few kilobytes, in seconds
  python scripts/benchmark_latency.py --shape llama-3.2-1b --shape-dtype float32 --cold --device-memory 2GiB
  python scripts/benchmark_latency.py --shape llama-2-70b --distinct-layers 2 --json -   JSON lines on stdout

exit codes: 0 ok, 1 outputs differ in float32, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
5 draft does not match, 130 interrupted"""
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
    Column("outputs", "outputs", str, "whether the tokens are the plain mode's (greedy; sampled ones may differ)"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(_parsed(arguments)))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser, add = benchmark_parser("benchmark_latency", DESCRIPTION, EXAMPLES)
    add("--json", metavar="FILE|-", help="write JSON lines; with - to stdout, and the table to stderr")
    timeline = "draw when link, device, drafting and verification work in a few steps of the last mode, as SVG"
    add("--timeline", metavar="FILE", type=Path, help=timeline)
    parser.set_defaults(temperature=0.0)  # greedy: both outputs must be the same
    return check_shape(parser, parser.parse_args(arguments))


def _run(arguments: argparse.Namespace) -> int:
    file = sys.stderr if arguments.json == "-" else sys.stdout
    with json_lines(arguments.json) as write, benchmarked(arguments, progress(arguments.quiet)) as options:
        return _benchmark(arguments, _modes(options), write, file)


def _modes(options: Options) -> dict[str, Preparation]:
    modes = {"plain": prepare(replace(options, draft=None, tree="none"))}
    return modes if options.draft is None or options.tree == "none" else {**modes, "tree": prepare(options)}


def _benchmark(arguments: argparse.Namespace, modes: dict[str, Preparation], write: Write, file: TextIO) -> int:
    """Measure mode after mode and write what comes of it; the exit code."""
    from latency.measure import Workload, measure_mode
    from rich.console import Console

    from offload_runtime.options.progress import LoadingBar

    plain, last = modes["plain"], list(modes)[-1]
    sampling = sampling_options(arguments).as_arguments()
    prompts = benchmark_prompts(arguments, plain.target.spec)
    workload = Workload(prompts, arguments.repeats, sampling.pop("seed"), sampling)
    direct = _reads_past_cache(plain, arguments.cold)
    print("\n".join(_heading(modes[last], arguments, workload)), file=file, flush=True)
    write("run", {**_run_record(modes[last], workload), **environment()})
    measured: list[Measurement] = []
    rows: list[dict[str, Any]] = []
    for mode, preparation in modes.items():
        draws = arguments.timeline is not None and mode == last
        with LoadingBar(Console(stderr=True), arguments.quiet) as loading:
            on_reply = _reporter(mode, write, arguments.quiet)
            measured.append(measure_mode(mode, preparation, direct, workload, loading, on_reply, draws))
        outputs = _compared(measured, arguments.temperature == 0)
        rows.append({**measured[-1].figures(), "outputs": outputs})
        slow, fast = (row["seconds_per_token_p50"] for row in (rows[0], rows[-1]))
        rows[-1]["speedup"] = slow / fast if slow and fast else None
        write("mode", rows[-1])
    lines = ["", *table_of(COLUMNS, rows), ""]
    for one, row in zip(measured, rows):
        lines += _mode_lines(one, row)
    lines += _timeline_lines(measured[-1], arguments.timeline)
    kinds = "- kB, MB and GB are powers of 1000; a dash: there is nothing to measure"
    print("\n".join([*lines, *_remarks(plain.plan.dtype, rows), "", *legend(COLUMNS), kinds]), file=file)
    return 1 if "differ" in rows[-1]["outputs"] and plain.plan.dtype == "float32" else 0


def _reads_past_cache(preparation: Preparation, cold: bool) -> bool:
    """Whether files are read past the page cache. Raises UsageError where that is asked for and impossible."""
    from loaders.io.reader import choose_io

    checkpoint, io = preparation.target.checkpoint, preparation.options.io
    io = choose_io(checkpoint.nbytes, preparation.machine.host_available) if io == "auto" else io
    direct = io == "direct" and measure_read_bandwidth(checkpoint.files, seconds=0).direct
    if cold and not direct:
        where = checkpoint.directory
        raise UsageError(f"--cold: the filesystem of {where} knows no reads past the page cache; copy the model")
    return direct


def _heading(preparation: Preparation, arguments: argparse.Namespace, workload: "Workload") -> Iterator[str]:
    plan, stored = preparation.plan, preparation.target.spec.stored_dtype
    types = f"stored in {stored}, computed in {plan.dtype}"
    yield f"{_names(plan)} on {plan.device_name}, {plan.machine.cores} cores: {types}"
    how = "greedy" if arguments.temperature == 0 else f"temperature {arguments.temperature:g}"
    tokens = f"at most {arguments.max_new_tokens} new tokens, {how}"
    yield f"{len(workload.prompts)} prompts x {workload.repeats} repeats, {tokens}; a warm-up is not counted"
    if preparation.options.share_layers:
        distinct = f"{len(plan.tiers)} layers share {arguments.distinct_layers} on disk and in host memory"
        yield f"{distinct}: the same bytes cross the link as with {len(plan.tiers)} different ones"


def _names(plan: Plan) -> str:
    return plan.model if plan.draft is None else f"{plan.model} drafted by {plan.draft}"


def _run_record(preparation: Preparation, workload: "Workload") -> dict[str, Any]:
    plan, options = preparation.plan, preparation.options
    what = {"model": plan.model, "draft": plan.draft, "layers": len(plan.tiers), "share_layers": options.share_layers}
    types = {"stored_dtype": preparation.target.spec.stored_dtype, "dtype": plan.dtype}
    how = {"prompts": len(workload.prompts), "repeats": workload.repeats, "seed": workload.seed, **workload.sampling}
    return {**what, **types, **how, "device": plan.device, "host_bytes": plan.machine.host_total}


def _reporter(mode: str, write: Write, quiet: bool) -> "Callable[[TimedReply], None]":
    """Writes each reply as a JSON line, and a line that it is finished."""

    def report(reply: "TimedReply") -> None:
        sums = ("draft_seconds", "target_seconds", "streamed_bytes")
        record = {
            **{"mode": mode, "prompt": reply.prompt, "repeat": reply.repeat, "token_ids": reply.token_ids},
            **{"finish_reason": reply.steps[-1].finish_reason, "passes": len(reply.steps)},
            "seconds_to_first_token": reply.seconds_to_first_token,
            "seconds_per_token": reply.seconds_per_token,
            **{name: sum(getattr(step, name) for step in reply.steps) for name in sums},
        }
        write("reply", record)
        took = seconds(record["draft_seconds"] + record["target_seconds"])
        progress(quiet)(f"{mode}, repeat {reply.repeat + 1}: {len(reply.token_ids)} tokens in {took} s")

    return report


def _compared(measured: "Sequence[Measurement]", greedy: bool) -> str:
    """Whether the last mode wrote the first one's tokens."""
    first, last = measured[0].replies, measured[-1].replies
    if len(measured) == 1:
        return "reference"
    if not greedy:
        return "sampled"
    differing = sum(a.token_ids != b.token_ids for a, b in zip(first, last, strict=True))
    return f"{differing}/{len(first)} differ" if differing else "equal"


def _mode_lines(one: "Measurement", row: Mapping[str, Any]) -> Iterator[str]:
    """What streamed, how fast the link is, and how far a pass is from what the machine can do."""
    layers, tiers = len(one.plan.tiers), one.plan.tiers
    streamed = layers - tiers.count(Tier.DEVICE)
    if not streamed:
        yield f"{one.mode}: all {layers} layers stay on the device, nothing is streamed"
        return
    cache = "past" if one.direct else "through"
    origins = {Tier.HOST: "from host memory", Tier.DISK: f"from disk {cache} the page cache"}
    origin = " and ".join(text for tier, text in origins.items() if tier in tiers)
    rates = (f"{name} {nbytes(rate)}/s" for name, rate in row["link_bytes_per_second"].items() if rate)
    link = f"{', '.join(rates)} (the most of {len(one.links)} measurements)"
    yield f"{one.mode}: {streamed} of {layers} layers streamed {origin}; {link}"
    if row["limit_ratio"]:
        alone = f"streaming alone {seconds(row['link_seconds'])} s, computing alone {seconds(row['compute_seconds'])} s"
        yield f"  {alone}; the median pass takes {row['limit_ratio']:.2f} x the larger of the two"


def _timeline_lines(one: "Measurement", file: Path | None) -> Iterator[str]:
    """Write the timeline of a mode, if it has one; a line about it."""
    from latency.timeline import drawn

    if file is None:
        return
    if one.timeline is None:
        yield f"{one.mode}: no step after the first, so there is no timeline"
        return
    write_whole(file, drawn(one.timeline, f"{_names(one.plan)} on {one.plan.device_name}"))
    yield f"{one.mode}: timeline in {file}: {one.timeline.summary}"


def _remarks(dtype: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What to make of the tree's figures."""
    row = rows[-1]
    if len(rows) > 1 and row["speedup"]:
        yield f"tree: {row['speedup']:.2f} x the tokens per second of plain decoding; outputs: {row['outputs']}"
        if not row["plan"]["slots"]:
            yield "Nothing streams, and a tree is made for passes that wait for the link; see --device-memory SIZE."
    if "differ" in row["outputs"] and dtype != "float32":
        yield f"In {dtype} a pass over a tree rounds differently than one over a token: outputs are equal up to ties."


if __name__ == "__main__":
    sys.exit(main())
