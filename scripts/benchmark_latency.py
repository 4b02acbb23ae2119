"""Seconds per token of plain streamed decoding and of tree decoding, side by side in one process.

    python scripts/benchmark_latency.py --help

Both modes load under the same limits, one after the other, and answer the same prompts. Beside each result stands what
bounds it, measured in the same run: the bandwidth of the link and the computing time. With --seed sampled replies can
be repeated, and the tree is the planned one; without, it is chosen by measured times.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from json_lines import open_lines
from latency.options import parse_arguments

from loaders.io.direct import measure_read_bandwidth
from offload_runtime.errors import UsageError
from offload_runtime.generation.fetching import fetched
from offload_runtime.options.arguments import model_options
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import IOMode, Options
from offload_runtime.options.sampling_options import sampling_options
from offload_runtime.planning.planning import Preparation, prepare

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from latency.measure import Workload
    from latency.records import Measurement, TimedReply
    from latency.report import Report
    from latency.weights import MadeUp, Note

CONTEXT_GRAIN = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    def note(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    with ExitStack() as resources:
        lines = _open_lines(arguments.json, resources)
        options, made_up = model_options(arguments), None
        if arguments.shape is not None:
            from latency.weights import made_up_weights

            made_up = resources.enter_context(made_up_weights(arguments, note))
            options = _made_up_options(options, made_up, arguments)
        options = fetched(options, arguments.yes, arguments.quiet)
        modes = {"plain": prepare(replace(options, draft=None, tree="none"))}
        if options.draft is not None and options.tree != "none":
            modes["tree"] = prepare(options)
        from latency.report import Report

        report = Report(sys.stderr if lines is sys.stdout else sys.stdout, lines, arguments.markdown)
        return _benchmark(arguments, modes, made_up, report, note)


def _open_lines(target: str | None, resources: ExitStack) -> TextIO | None:
    if target is None or target == "-":
        return sys.stdout if target else None
    return open_lines(target, resources)


def _made_up_options(options: Options, made_up: "MadeUp", arguments: argparse.Namespace) -> Options:
    """Made-up models in place of given ones, and a context no longer than the replies need."""
    needed = arguments.prompt_tokens + arguments.max_new_tokens
    return replace(
        options,
        model=made_up.target,
        draft=made_up.draft,
        share_layers=made_up.distinct_layers < made_up.layers,
        context_length=options.context_length or -(-needed // CONTEXT_GRAIN) * CONTEXT_GRAIN,
    )


def _benchmark(
    arguments: argparse.Namespace,
    modes: dict[str, Preparation],
    made_up: "MadeUp | None",
    report: "Report",
    note: "Note",
) -> int:
    """Measure mode after mode and write what comes of it; the exit code."""
    from latency.report import figures
    from latency.summary import compare, mode_lines, remarks, speedup

    workload = _workload(arguments, modes["plain"])
    io = _reading(modes["plain"], arguments.cold, note)
    _begin(arguments, modes, made_up, workload, report)
    measured: list[Measurement] = []
    for mode, preparation in modes.items():
        options = replace(preparation.options, io=io)
        measured.append(_measure(mode, replace(preparation, options=options), workload, report, note, arguments.quiet))
        outputs = compare(measured[0], measured[-1], greedy=arguments.temperature == 0) if measured[1:] else "reference"
        gain = speedup(measured[0], measured[-1])
        report.row(figures(measured[-1], outputs, gain))
    report.say()
    for measurement in measured:
        report.say_all(mode_lines(measurement))
    if measured[1:]:
        demonstration = made_up is None and arguments.model is None
        report.say_all(remarks(measured[-1], gain, outputs, made_up is not None, demonstration))
    report.legend()
    return 1 if "differ" in outputs and modes["plain"].plan.dtype == "float32" else 0


def _workload(arguments: argparse.Namespace, preparation: Preparation) -> "Workload":
    from latency.measure import Workload
    from latency.prompts import prompts_for

    spec = preparation.target.spec
    seed = arguments.seed or 0
    prompts = prompts_for(
        spec.directory, spec.vocab_size, arguments.prompts, arguments.raw, arguments.prompt_tokens, seed
    )
    sampling = sampling_options(arguments).as_arguments()
    own = {name: sampling.pop(name) for name in ("max_new_tokens", "seed")}
    return Workload(prompts, arguments.repeats, arguments.warmup, own["seed"], own["max_new_tokens"], sampling)


def _reading(preparation: Preparation, cold: bool, note: "Note") -> IOMode:
    """Whether files are read past the page cache; layers that repeat on disk always are, where that is possible.

    Raises UsageError where it is asked for and impossible.
    """
    from loaders.io.reader import choose_io

    checkpoint, shared = preparation.target.checkpoint, preparation.options.share_layers
    io = "direct" if cold or shared else choose_io(checkpoint.nbytes, preparation.machine.host_available)
    if io == "buffered" or measure_read_bandwidth(checkpoint.files, seconds=0).direct:
        return io
    directory = checkpoint.directory
    if cold:
        raise UsageError(f"--cold: the filesystem of {directory} knows no reads past the page cache; copy the model")
    note(f"the filesystem of {directory} knows no reads past the page cache: --work-dir on a disk measures the disk")
    return "buffered"


def _begin(
    arguments: argparse.Namespace,
    modes: dict[str, Preparation],
    made_up: "MadeUp | None",
    workload: "Workload",
    report: "Report",
) -> None:
    """Write what is going to run."""
    from latency.report import environment
    from latency.summary import heading, sharing

    *_, last = modes.values()
    spec = last.target.spec
    report.say_all(heading(last.plan, spec.stored_dtype, workload))
    layers = {"layers": len(spec.units), "distinct_layers": made_up.distinct_layers if made_up else len(spec.units)}
    if layers["distinct_layers"] < layers["layers"]:
        report.say(sharing(**layers))
    report.record(
        {
            "record": "run",
            "model": last.plan.model,
            "draft": last.plan.draft,
            "made_up": made_up is not None,
            **layers,
            "stored_dtype": spec.stored_dtype,
            "dtype": last.plan.dtype,
            "prompts": len(workload.prompts),
            "repeats": workload.repeats,
            "warmup": workload.warmup,
            "max_new_tokens": workload.max_new_tokens,
            "seed": workload.seed,
            "sampling": workload.sampling,
            **environment(last.plan),
        }
    )
    report.begin_table()


def _measure(
    mode: str, preparation: Preparation, workload: "Workload", report: "Report", note: "Note", quiet: bool
) -> "Measurement":
    from latency.measure import measure_mode
    from latency.report import reply_record, write_seconds
    from rich.console import Console

    from offload_runtime.options.progress import LoadingBar

    replies = len(workload.prompts) * workload.repeats

    def on_reply(reply: "TimedReply") -> None:
        report.record(reply_record(mode, reply))
        pace = reply.seconds_per_token
        done = reply.repeat * len(workload.prompts) + reply.prompt + 1
        note(f"{mode} {done}/{replies}: {len(reply.token_ids)} tokens, {write_seconds(pace) if pace else '-'} s/token")

    with LoadingBar(Console(stderr=True), quiet) as loading:
        return measure_mode(mode, preparation, workload, loading, on_reply)


if __name__ == "__main__":
    sys.exit(main())
