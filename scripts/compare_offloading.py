"""Seconds of a cold pass over a model whose layers are on disk: ours, `accelerate` disk offload and AirLLM.

    python scripts/compare_offloading.py --help

Every program runs in a process of its own, one after the other, in rounds, with the same files, tokens and type. What
reads through the page cache finds none of the streamed layers in it: the files are dropped before every pass. Ours
reads past it. The disk's bandwidth is measured between the runs.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from offloading.job import PROGRAMS, Job, Outcome, missing, run
from toolkit.options import add_quiet, add_shape_options, adder, script_parser
from toolkit.output import Write, json_lines, progress

from loaders.io.direct import ReadBandwidth, measure_read_bandwidth
from loaders.sizes import format_size
from offload_runtime.errors import DoesNotFitError, UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import size
from offload_runtime.options.run_options import DTYPES
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.plan.plan import Tier

DESCRIPTION = """\
Seconds of a cold decode pass, one token each, when a model's layers are on disk: ours, `accelerate` disk offload and
AirLLM, on the same files, one process after the other, in rounds. No layer is in the page cache when a pass begins.
What ours could reach at best is measured in the same run: bytes over the disk's bandwidth, and computing alone."""
EXAMPLES = """examples:
  python scripts/compare_offloading.py                                  random weights, 4.9 GB in float32
  python scripts/compare_offloading.py --shape-dtype bfloat16 --dtype float32
  python scripts/compare_offloading.py -m DIR --rounds 1                a model of your own
  python scripts/compare_offloading.py --python airllm=VENV/bin/python  a program in its own virtual environment

exit codes: 0 ok, 1 our own run failed, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
130 interrupted"""
SHAPE = "llama-3.2-1b"
DISK_SECONDS = 1.0  # per measurement


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = script_parser("compare_offloading", DESCRIPTION, EXAMPLES)
    add = adder(parser.add_argument_group("model"))
    add("--model", "-m", metavar="DIR", type=Path, help=f"a model in safetensors files, in place of --shape {SHAPE}")
    add("--dtype", choices=DTYPES, default="auto", help="type that all programs compute in")
    cap = "of ours; layers that fit stay in memory, of `accelerate` too (default: the least that works)"
    add("--device-memory", metavar="SIZE", type=size, help=cap)
    add_shape_options(parser, "float32")
    add = adder(parser.add_argument_group("run"))
    add("--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS], help="which to run (all where not given)")
    python = "the interpreter of the virtual environment that a program is installed in, in place of this one's"
    add("--python", metavar="PROGRAM=PATH", action="append", type=_python, default=[], help=python)
    add("--rounds", default=3, help="runs of each program, in turn")
    add("--passes", default=4, help="timed passes of a run")
    add("--prompt-tokens", default=16, help="random tokens of the prompt")
    add("--seed", default=0, least=0, help="of weights and prompt")
    add("--json", metavar="FILE", type=Path, help="write JSON lines")
    add_quiet(add)
    parsed = parser.parse_args(arguments)
    if parsed.model is not None and parsed.shape is not None:
        parser.error("argument --shape: random weights or --model, not both")
    return parsed


def _python(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name not in PROGRAMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not PROGRAM=PATH; the programs are {', '.join(PROGRAMS)}")
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path}: there is no such file")
    return name, Path(path)


def _run(arguments: argparse.Namespace) -> int:
    from toolkit.checkpoints import random_model, run_directory

    note, model = progress(arguments.quiet), arguments.model
    with json_lines(arguments.json) as write, ExitStack() as resources:
        if model is None:
            shape, dtype, parent = arguments.shape or SHAPE, arguments.shape_dtype, arguments.work_dir
            model = resources.enter_context(random_model(shape, dtype, parent, note, seed=arguments.seed))
        directory = resources.enter_context(run_directory("offloading-", arguments.work_dir))
        preparation = _prepare(arguments, model)
        job = _job(arguments, preparation)
        _say_what_runs(preparation, job, arguments)
        results, disk = _rounds(arguments, job, directory, preparation, write)
        return _report(results, disk, write)


def _prepare(arguments: argparse.Namespace, model: Path) -> Preparation:
    """Plan ours. Raises UsageError where nothing would be streamed, or reads cannot pass the page cache."""
    from offloading.runs import our_options

    options = our_options(
        model, arguments.dtype, arguments.device_memory, arguments.prompt_tokens + arguments.passes + 1
    )
    if arguments.device_memory is None:
        try:
            prepare(replace(options, device_memory=1))
        except DoesNotFitError as error:  # which says what would fit; less than 1 % is found while loading
            options = replace(options, device_memory=int(1.01 * error.needed))
    preparation = prepare(options)
    if Tier.DISK not in preparation.plan.tiers:
        raise UsageError("the model fits into the memory it may use, nothing is streamed: a smaller --device-memory")
    if not _disk(preparation, seconds=0).direct:
        raise UsageError(f"the filesystem of {model} knows no reads past the page cache; --work-dir on a disk")
    return preparation


def _job(arguments: argparse.Namespace, preparation: Preparation) -> Job:
    spec, plan, numbers = preparation.target.spec, preparation.plan, random.Random(arguments.seed)
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
    arguments: argparse.Namespace, job: Job, directory: Path, preparation: Preparation, write: Write
) -> tuple[dict[str, list[Outcome | str]], list[float]]:
    """Results by program and round, and the disk's bandwidth before every run."""
    pythons = {**dict.fromkeys(arguments.programs, Path(sys.executable)), **dict(arguments.python)}
    results: dict[str, list[Outcome | str]] = {name: [] for name in arguments.programs}
    disk: list[float] = []
    absent = {name: missing(name, pythons[name]) for name in results}
    for number in range(arguments.rounds):
        for name, reason in absent.items():
            if reason is not None:
                results[name].append(reason)
                continue
            own = directory / name
            own.mkdir(exist_ok=True)
            disk.append(_disk(preparation).bytes_per_second)
            result = run(name, pythons[name], replace(job, directory=str(own)))
            results[name].append(result)
            figures = {"failure": result} if isinstance(result, str) else vars(result)
            passes = result if isinstance(result, str) else [round(seconds, 2) for seconds in result.pass_seconds]
            progress(arguments.quiet)(f"round {number + 1}/{arguments.rounds}, {name}: {passes}")
            write("run", {"round": number, "program": name, "disk_bytes_per_second": disk[-1], **figures})
    return results, disk


def _say_what_runs(preparation: Preparation, job: Job, arguments: argparse.Namespace) -> None:
    plan, stored = preparation.plan, preparation.target.spec.stored_dtype
    placed = f"{len(job.streamed_layers)} of {len(plan.tiers)} layers on disk, ours in {format_size(job.device_memory)}"
    print(f"{plan.model}: {format_size(plan.weight_bytes)} of weights, stored in {stored}, computed in {job.dtype}")
    print(f"{plan.device_name}, {plan.machine.cores} cores; {placed}")
    rounds = f"{arguments.rounds} rounds, each {len(job.tokens)} tokens of prompt"
    print(f"{rounds} and {job.passes} passes of one token", flush=True)


def _report(results: dict[str, list[Outcome | str]], disk: Sequence[float], write: Write) -> int:
    """The table, and what bounds ours; the exit code."""
    from offloading.summary import Limit, figures, program_table

    rows = [figures(name, results) for name in results]
    print("\n".join(["", *program_table(rows), ""]))
    if limit := Limit.of(disk, results.get("ours", ())):
        print("\n".join(limit.lines()))
        write("limit", limit.figures())
    for row in rows:
        write("program", row)
    return int(any(row["failure"] for row in rows if row["program"] == "ours"))


if __name__ == "__main__":
    sys.exit(main())
