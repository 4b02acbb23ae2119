"""The command line of the comparison. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from toolkit.options import add_count, add_quiet, add_shape_options, adder, script_parser

from offload_runtime.options.readers import size, whole_number
from offload_runtime.options.run_options import DTYPES
from offloading.programs import PROGRAMS

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


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = script_parser("compare_offloading", DESCRIPTION, EXAMPLES)
    add = adder(parser.add_argument_group("model"))
    add("--model", "-m", metavar="DIR", type=Path, help=f"a model in safetensors files, in place of --shape {SHAPE}")
    add("--dtype", choices=DTYPES, default="auto", help="type that all programs compute in")
    cap = "of ours; layers that fit stay in memory, of `accelerate` too (default: the least that works)"
    add("--device-memory", metavar="SIZE", type=size, help=cap)
    add_shape_options(parser, "float32")
    group = parser.add_argument_group("run")
    add = adder(group)
    programs = "which to run (default: all)"
    group.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help=programs)
    python = "the interpreter of the virtual environment that a program is installed in (default: this one's)"
    group.add_argument("--python", metavar="PROGRAM=PATH", action="append", type=_python, default=[], help=python)
    add_count(add, "--rounds", 3, 1, "runs of each program, in turn")
    add_count(add, "--passes", 4, 1, "timed passes of a run")
    add_count(add, "--prompt-tokens", 16, 1, "random tokens of the prompt")
    add("--seed", metavar="N", type=whole_number(0), default=0, help="of weights and prompt")
    add("--json", metavar="FILE", type=Path, help="write JSON lines")
    add_quiet(group)
    parsed = parser.parse_args(arguments)
    if parsed.model is not None and parsed.shape is not None:
        parser.error("argument --shape: random weights or --model, not both")
    if parsed.model is None and parsed.shape is None:
        parsed.shape = SHAPE
    return parsed


def _python(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name not in PROGRAMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not PROGRAM=PATH; the programs are {', '.join(PROGRAMS)}")
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path}: there is no such file")
    return name, Path(path)
