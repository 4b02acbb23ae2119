"""The command line of the comparison. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from offload_runtime.options.arguments import size
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import DTYPES
from offloading.programs import PROGRAMS

DESCRIPTION = """\
Seconds of a cold decode pass, one token each, when a model's layers are on disk: ours, `accelerate` disk offload and
AirLLM, on the same files, one process after the other, in rounds. No layer is in the page cache when a pass begins.
What ours could reach at best is measured in the same run: bytes over the disk's bandwidth, and computing alone."""

EXAMPLES = """examples:
  python scripts/compare_offloading.py                                  made-up weights, 4.9 GB in float32
  python scripts/compare_offloading.py --shape-dtype bfloat16 --dtype float32
  python scripts/compare_offloading.py -m DIR --rounds 1                a model of your own
  python scripts/compare_offloading.py --python airllm=VENV/bin/python  a program in its own virtual environment

exit codes: 0 ok, 1 our own run failed, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
130 interrupted"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python scripts/compare_offloading.py",
        usage="%(prog)s [OPTIONS]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model_options(parser)
    _add_run_options(parser)
    parsed = parser.parse_args(arguments)
    if parsed.model is not None and parsed.shape is not None:
        parser.error("argument --shape: made-up weights or --model, not both")
    if parsed.model is None and parsed.shape is None:
        parsed.shape = "llama-3.2-1b"
    parsed.draft_shape = None
    return parsed


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", "-m", metavar="DIR", type=Path, help="directory of a model in safetensors files")
    add("--shape", metavar="NAME|FILE", help="made-up weights in this shape, or that of a config.json (llama-3.2-1b)")
    add(
        "--shape-dtype",
        choices=("bfloat16", "float16", "float32"),
        default="float32",
        help="type the made-up weights are stored in (default: float32)",
    )
    add("--dtype", choices=DTYPES, default="auto", help="type that all programs compute in (default: auto)")
    add(
        "--device-memory",
        metavar="SIZE",
        type=size,
        help="of ours; layers that fit stay in memory, of `accelerate` too (default: the least that works)",
    )
    add("--work-dir", metavar="DIR", type=Path, help="where to write files (default: for temporary files)")
    add("--keep", action="store_true", help="keep made-up weights for the next run; needs --work-dir")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="which to run (default: all)")
    add(
        "--python",
        metavar="PROGRAM=PATH",
        action="append",
        type=_python,
        default=[],
        help="the interpreter of the virtual environment that a program is installed in (default: this one's)",
    )
    add("--rounds", metavar="N", type=whole_number(1), default=3, help="runs of each program, in turn (default: 3)")
    add("--passes", metavar="N", type=whole_number(1), default=4, help="timed passes of a run (default: 4)")
    add("--prompt-tokens", metavar="N", type=whole_number(1), default=16, help="made-up tokens (default: 16)")
    add("--seed", metavar="N", type=whole_number(0), default=0, help="of weights and prompt (default: 0)")
    add("--json", metavar="FILE", type=Path, help="write JSON lines")
    add("--quiet", action="store_true", help="leave out the lines that show progress")


def _python(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name not in PROGRAMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not PROGRAM=PATH; the programs are {', '.join(PROGRAMS)}")
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path}: there is no such file")
    return name, Path(path)
