"""Seconds of a cold pass over a model whose layers are on disk: ours, `accelerate` disk offload and AirLLM.

    python scripts/compare_offloading.py --help

Every program runs in a process of its own, one after the other, in rounds, with the same files, tokens and type. What
reads through the page cache finds none of the streamed layers in it: the files are dropped before every pass. Ours
reads past it. The disk's bandwidth is measured between the runs.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from offloading.job import Job, Outcome
from offloading.options import parse_arguments
from offloading.programs import Failure, missing, run, this_python
from toolkit.output import JsonLines, Note, progress, say

from loaders.io.direct import ReadBandwidth, measure_read_bandwidth
from loaders.sizes import format_size
from offload_runtime.errors import DoesNotFitError, UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.plan.plan import Plan, Tier, make_plan

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
DISK_SECONDS = 1.0  # per measurement
SEARCH_STEPS = 12  # of the least device memory that works, each halves what is in question

Results = dict[str, list[Outcome | Failure]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    note = progress(arguments.quiet)
    with ExitStack() as resources:
        lines = JsonLines(arguments.json, resources)
        from toolkit.checkpoints import run_directory

        model = resources.enter_context(_model(arguments, note))
        directory = resources.enter_context(run_directory("offloading-", arguments.work_dir))
        preparation = _prepare(arguments, model)
        job = _job(arguments, preparation)
        say(_heading(preparation, job, arguments))
        results, disk = _rounds(arguments, job, directory, preparation, note, lines)
        return _report(results, disk, lines)


@contextmanager
def _model(arguments: argparse.Namespace, note: Note) -> Iterator[Path]:
    """The given model, or random weights that vanish after the block."""
    if arguments.model is not None:
        yield arguments.model
        return
    from toolkit.checkpoints import random_models, shape_config

    layers = shape_config(arguments.shape)["num_hidden_layers"]  # other programs know no layers that share their bytes
    with random_models(arguments, note, distinct_layers=layers) as models:
        yield models.target


def _prepare(arguments: argparse.Namespace, model: Path) -> Preparation:
    """Plan ours. Raises UsageError where nothing would be streamed, or reads cannot pass the page cache."""
    from offloading.runs import our_options

    context = arguments.prompt_tokens + arguments.passes + 1
    preparation = prepare(our_options(model, arguments.dtype, arguments.device_memory, context))
    if arguments.device_memory is None:
        preparation = prepare(replace(preparation.options, device_memory=_least_device_memory(preparation)))
    if Tier.DISK not in preparation.plan.tiers:
        raise UsageError("the model fits into the memory it may use, nothing is streamed: a smaller --device-memory")
    if not _disk(preparation, seconds=0).direct:
        raise UsageError(f"the filesystem of {model} knows no reads past the page cache; --work-dir on a disk")
    return preparation


def _least_device_memory(preparation: Preparation) -> int:
    """Bytes, found by halving; a little above the least."""
    low, high = 0, preparation.plan.device_bytes
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        limits = replace(preparation.limits, device_memory=middle)
        try:
            make_plan(preparation.target.spec, None, preparation.machine, limits)
            high = middle
        except DoesNotFitError:
            low = middle
    return high


def _job(arguments: argparse.Namespace, preparation: Preparation) -> Job:
    spec, plan = preparation.target.spec, preparation.plan
    numbers = random.Random(arguments.seed)
    return Job(
        model=str(Path(spec.directory).resolve()),
        tokens=[numbers.randrange(spec.vocab_size) for _ in range(arguments.prompt_tokens)],
        passes=arguments.passes,
        dtype=plan.dtype,
        streamed_layers=[layer for layer, tier in enumerate(plan.tiers) if tier is Tier.DISK],
        device_memory=plan.device_budget,
        directory="",
    )


def _disk(preparation: Preparation, seconds: float = DISK_SECONDS) -> ReadBandwidth:
    files, chunk_bytes = preparation.target.checkpoint.files, preparation.plan.read_chunk_bytes
    return measure_read_bandwidth(files, seconds, chunk_bytes=chunk_bytes)


def _rounds(
    arguments: argparse.Namespace, job: Job, directory: Path, preparation: Preparation, note: Note, lines: JsonLines
) -> tuple[Results, list[float]]:
    """Results by program and round, and the disk's bandwidth before every run."""
    pythons = {**dict.fromkeys(arguments.programs, this_python()), **dict(arguments.python)}
    results: Results = {name: [] for name in arguments.programs}
    disk: list[float] = []
    absent = {name: reason for name in results if (reason := missing(name, pythons[name]))}
    for number in range(arguments.rounds):
        for name in results:
            if name in absent:
                results[name].append(Failure(absent[name]))
                continue
            own = directory / name
            own.mkdir(exist_ok=True)
            disk.append(_disk(preparation).bytes_per_second)
            result = run(name, pythons[name], replace(job, directory=str(own)))
            results[name].append(result)
            note(f"round {number + 1}/{arguments.rounds}, {name}: {result.in_short}")
            what = {"round": number, "program": name, "disk_bytes_per_second": disk[-1]}
            lines.write("run", {**what, **vars(result)})
    return results, disk


def _heading(preparation: Preparation, job: Job, arguments: argparse.Namespace) -> Iterator[str]:
    plan: Plan = preparation.plan
    stored = preparation.target.spec.stored_dtype
    yield f"{plan.model}: {format_size(plan.weight_bytes)} of weights, stored in {stored}, computed in {job.dtype}"
    placed = f"{len(job.streamed_layers)} of {len(plan.tiers)} layers on disk, ours in {format_size(job.device_memory)}"
    yield f"{plan.device_name}, {plan.machine.cores} cores; {placed}"
    yield f"{arguments.rounds} rounds, each {len(job.tokens)} tokens of prompt and {job.passes} passes of one token"


def _report(results: Mapping[str, list[Outcome | Failure]], disk: Sequence[float], lines: JsonLines) -> int:
    """The table, and what bounds ours; the exit code."""
    from offloading.summary import Limit, Runs, figures, limit_lines, program_table

    runs = {name: Runs.of(name, outcomes) for name, outcomes in results.items()}
    ours = runs.get("ours", Runs("ours", {}))
    rows = [figures(its, ours) for its in runs.values()]
    say(["", *program_table(rows), ""])
    if limit := Limit.of(disk, ours):
        say(limit_lines(limit, ours))
        lines.write("limit", limit.figures(ours))
    for row in rows:
        lines.write("program", row)
    return 1 if ours.failure else 0


if __name__ == "__main__":
    sys.exit(main())
