"""Measure on one GPU what this project promises, in nine minutes, and write it down.

    python scripts/gpu_report.py                         everything, into docs/measurements
    python scripts/gpu_report.py --only a,b --minutes 4  some sections
    python scripts/gpu_report.py --dry-run --output DIR  tiny shapes on any machine: does the script work?

Sections:
  a  bandwidths: host to device out of pinned and pageable memory, disk to host
  b  passes of a 70B shape over trees of 1 to 4,096 nodes, the device capped to 16, 24 and 46 GiB, against the roofline
     and the plan's prediction, and the first token after a prompt of 1,000; the layers share host memory, and every one
     of them crosses the link
  c  levels of resident drafts of 1B and 8B shapes
  d  decoding packed weights of every format
  e  the demonstration pair widened to Llama2-7B and a 68M draft, on the device: trees against plain decoding
  f  CPU offload of accelerate against ours on the same layers
  g  the demonstration target widened to 70B, streamed, with the bundled draft: its text, acceptance and speed
  h  dequantizing copies of the target and weights packed without loss; the demonstration target widened to 7B, streamed
     over the plain and the packed link, drafted by nothing and by its own copies of 3, 4 and 5 bits

Needs 64 GB of host memory and 60 GB of disk (--work-dir says where; everything written there is removed). Results are
written as they come. A section that fails or runs out of time is noted, and the others go on.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed


from toolkit.options import add_quiet, adder, listed, one_of, script_parser
from toolkit.output import progress

from offload_runtime.errors import MachineError, UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import real_number
from scheduler.machine.machine import read_machine

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from gpu.bench import Bench, Budget
    from gpu.report import Record, Report

    Section = Callable[[Bench, Budget], Iterator[Record]]

MEASUREMENTS = Path(__file__).resolve().parents[1] / "docs" / "measurements"
MINUTES = 9.0
# Of the time; what is left of one goes to the next.
SHARES = {"a": 0.04, "b": 0.34, "c": 0.06, "d": 0.03, "e": 0.11, "f": 0.12, "g": 0.19, "h": 0.11}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run and arguments.output is None:
        raise UsageError("--dry-run needs --output DIR: its figures must not stand among measurements")
    device = "cpu" if arguments.dry_run else "cuda"
    try:
        machine = read_machine(device)
    except MachineError as error:
        raise MachineError(f"{error}\n  --dry-run --output DIR   runs tiny shapes on the processor") from error
    import transformers

    transformers.logging.disable_progress_bar()
    from toolkit.checkpoints import own_cache, run_directory

    with run_directory("gpu-report-", arguments.work_dir) as directory, own_cache(directory / "cache"):
        from gpu.bench import Bench
        from gpu.report import Report
        from gpu.scale import FULL, TINY

        bench = Bench(TINY if arguments.dry_run else FULL, device, directory, progress(arguments.quiet))
        date, output = datetime.date.today().isoformat(), arguments.output or MEASUREMENTS
        report = Report(output, date, machine, arguments.dry_run, arguments.minutes)
        _measure(bench, report, arguments.only, arguments.minutes * 60)
        print("\n".join(map(str, report.files)))
    return 0


def _measure(bench: "Bench", report: "Report", only: Sequence[str], seconds: float) -> None:
    """Run the sections one after the other, each up to its share of the time and what the ones before have left."""
    from gpu.bench import Budget

    begin = time.monotonic()
    total, passed, took = sum(SHARES[letter] for letter in only), 0.0, {}
    for letter in only:
        passed += SHARES[letter]
        started = time.monotonic()
        bench.note(f"section {letter}")
        _run_section(bench, report, letter, Budget(begin + seconds * passed / total))
        took[letter] = time.monotonic() - started
        report.finish(took)


def _run_section(bench: "Bench", report: "Report", letter: str, budget: "Budget") -> None:
    """All records of a section; whatever ends it early becomes a record too."""
    from gpu.bench import OutOfTime
    from gpu.report import missing

    from offload_runtime.generation.out_of_memory import free_unused_memory

    what = f"section {letter}, what is not in the tables above"
    try:
        budget.need()
        for part in _sections()[letter]:
            for record in part(bench, budget):
                report.add(record)
    except OutOfTime as error:
        report.add(missing(letter, what, "out of time", str(error)))
    except Exception as error:  # the other sections are worth having, and the report says what this one died of
        bench.note(f"  failed: {type(error).__name__}: {error}")
        report.add(missing(letter, what, "failed", f"{type(error).__name__}: {error}"))
    free_unused_memory()


def _sections() -> dict[str, "tuple[Section, ...]"]:
    from gpu import decoding, drafts, offloading, passes, unpacking

    return {
        "a": (passes.bandwidths,),
        "b": (passes.run,),
        "c": (drafts.run,),
        "d": (unpacking.run,),
        "e": (decoding.on_chip,),
        "f": (offloading.run,),
        "g": (decoding.end_to_end,),
        "h": (unpacking.codes, decoding.self_drafts),
    }


def _letters(text: str) -> list[str]:
    letters = listed(one_of(SHARES, "section"))(text)
    return [letter for letter in SHARES if letter in letters]


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("gpu_report", __doc__)
    add = adder(parser)
    add("--only", metavar="LETTERS", type=_letters, default=list(SHARES), help="sections to run")
    add("--minutes", metavar="N", type=real_number(0, above=True), default=MINUTES, help="for all")
    add("--output", metavar="DIR", type=Path, help="where the report goes (default: docs/measurements)")
    add("--work-dir", metavar="DIR", type=Path, help="where checkpoints are written (default: for temporary files)")
    add("--dry-run", action="store_true", help="tiny shapes on the processor; the figures mean nothing")
    add_quiet(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
