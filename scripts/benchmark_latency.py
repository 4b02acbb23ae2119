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
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from latency.options import parse_arguments
from toolkit.output import JsonLines, Note, progress, write_file

from loaders.io.direct import measure_read_bandwidth
from offload_runtime.errors import UsageError
from offload_runtime.loading.fetching import fetched
from offload_runtime.options.arguments import model_options
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import IOMode, Options
from offload_runtime.options.sampling_options import sampling_options
from offload_runtime.planning.planning import Preparation, prepare

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from latency.measure import Workload
    from latency.measurement import Measurement
    from latency.report import Report
    from toolkit.checkpoints import RandomModels
    from toolkit.replies import TimedReply

CONTEXT_GRAIN = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    note = progress(arguments.quiet)
    with ExitStack() as resources:
        lines = JsonLines(arguments.json, resources)
        options, random = model_options(arguments), None
        if arguments.shape is not None:
            from toolkit.checkpoints import random_models

            wanted = (arguments.draft_shape, arguments.distinct_layers)
            random = resources.enter_context(random_models(arguments, note, *wanted))
            options = _with_random(options, random, arguments)
        options = fetched(options, arguments.yes, arguments.quiet)
        modes = {"plain": prepare(replace(options, draft=None, tree="none"))}
        if options.draft is not None and options.tree != "none":
            modes["tree"] = prepare(options)
        from latency.report import Report

        report = Report(sys.stderr if lines.file is sys.stdout else sys.stdout, lines)
        return _benchmark(arguments, modes, random, report, note)


def _with_random(options: Options, random: "RandomModels", arguments: argparse.Namespace) -> Options:
    """Random models in place of given ones, and a context no longer than the replies need."""
    needed = arguments.prompt_tokens + arguments.max_new_tokens
    return replace(
        options,
        model=random.target,
        draft=random.draft,
        share_layers=random.distinct_layers < random.layers,
        context_length=options.context_length or -(-needed // CONTEXT_GRAIN) * CONTEXT_GRAIN,
    )


def _benchmark(
    arguments: argparse.Namespace,
    modes: dict[str, Preparation],
    random: "RandomModels | None",
    report: "Report",
    note: Note,
) -> int:
    """Measure mode after mode and write what comes of it; the exit code."""
    from latency.report import compare, mode_lines, remarks

    workload = _workload(arguments, modes["plain"])
    io = _reading(modes["plain"], arguments.cold, note)
    _begin([*modes.values()][-1], random, workload, report)
    measured, figures = [], []
    for mode, preparation in modes.items():
        preparation = replace(preparation, options=replace(preparation.options, io=io))
        draws = arguments.timeline is not None and mode == [*modes][-1]
        measured.append(_measure(mode, preparation, workload, report, note, arguments.quiet, draws))
        plain, last = measured[0], measured[-1]
        outputs = "reference" if last is plain else compare(plain, last, greedy=arguments.temperature == 0)
        slow, fast = plain.seconds_per_token, last.seconds_per_token
        figures.append(last.figures(outputs, slow / fast if slow and fast else None))
        report.row(figures[-1])
    report.say([""])
    for one, its_figures in zip(measured, figures):
        report.say(mode_lines(one, its_figures))
    if measured[1:]:
        demonstration = random is None and arguments.model is None
        report.say(remarks(measured[-1], figures[-1], random is not None, demonstration))
    if arguments.timeline is not None:
        report.say([_drawn(measured[-1], arguments.timeline)])
    report.say([""])
    report.legend()
    return 1 if "differ" in figures[-1]["outputs"] and modes["plain"].plan.dtype == "float32" else 0


def _drawn(measured: "Measurement", file: Path) -> str:
    """Write the timeline of a mode, if it has one; a line about it. Raises UsageError."""
    from latency.report import timeline_line
    from latency.timeline_svg import drawn

    if measured.timeline is not None:
        plan = measured.plan
        names = plan.model if plan.draft is None else f"{plan.model} drafted by {plan.draft}"
        write_file("--timeline", file, drawn(measured.timeline, f"{names} on {plan.device_name}"))
    return timeline_line(measured.mode, measured.timeline, file)


def _workload(arguments: argparse.Namespace, preparation: Preparation) -> "Workload":
    from latency.measure import Workload
    from toolkit.prompts import prompts_for

    spec, file, raw = preparation.target.spec, arguments.prompts, arguments.raw
    prompts = prompts_for(spec.directory, spec.vocab_size, file, raw, arguments.prompt_tokens, seed=arguments.seed or 0)
    sampling = sampling_options(arguments).as_arguments()
    own = {name: sampling.pop(name) for name in ("max_new_tokens", "seed")}
    return Workload(prompts, arguments.repeats, arguments.warmup, own["seed"], own["max_new_tokens"], sampling)


def _reading(preparation: Preparation, cold: bool, note: Note) -> IOMode:
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


def _begin(preparation: Preparation, random: "RandomModels | None", workload: "Workload", report: "Report") -> None:
    """Write what is going to run."""
    from latency.report import heading
    from toolkit.output import environment

    spec, plan = preparation.target.spec, preparation.plan
    layers = len(spec.layers)
    distinct = random.distinct_layers if random else layers
    report.say(heading(plan, spec.stored_dtype, workload, layers, distinct))
    what = {
        "model": plan.model,
        "draft": plan.draft,
        "made_up": random is not None,
        "layers": layers,
        "distinct_layers": distinct,
        "stored_dtype": spec.stored_dtype,
        "dtype": plan.dtype,
    }
    how = {**vars(workload), "prompts": len(workload.prompts)}
    machine = {"device": plan.device, "device_name": plan.device_name, "host_bytes": plan.machine.host_total}
    report.lines.write("run", {**what, **how, **environment(), **machine})
    report.begin()


def _measure(
    mode: str,
    preparation: Preparation,
    workload: "Workload",
    report: "Report",
    note: Note,
    quiet: bool,
    timeline: bool,
) -> "Measurement":
    from latency.measure import measure_mode
    from latency.report import progress_line, reply_record
    from rich.console import Console

    from offload_runtime.options.progress import LoadingBar

    def on_reply(reply: "TimedReply") -> None:
        report.lines.write("reply", reply_record(mode, reply))
        done = reply.repeat * len(workload.prompts) + reply.prompt + 1
        note(progress_line(mode, reply, done, len(workload.prompts) * workload.repeats))

    with LoadingBar(Console(stderr=True), quiet) as loading:
        return measure_mode(mode, preparation, workload, loading, on_reply, timeline)


if __name__ == "__main__":
    sys.exit(main())
