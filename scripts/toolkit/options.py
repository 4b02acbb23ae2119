"""Parts of command lines. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from offload_runtime.options.readers import whole_number

Value = TypeVar("Value")
STORED_DTYPES = ("bfloat16", "float16", "float32")


def script_parser(name: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `scripts/NAME.py`, its texts shown as they stand."""
    return argparse.ArgumentParser(
        prog=f"python scripts/{name}.py",
        usage="%(prog)s [OPTIONS]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def adder(group: argparse._ActionsContainer) -> Callable[..., Any]:
    """As `group.add_argument`, with the default named at the end of the help; a number without a type is a count."""

    def add(*flags: str, help: str, least: int = 1, **others: Any) -> None:
        default = others.get("default")
        if type(default) is int and "type" not in others:
            others |= {"metavar": "N", "type": whole_number(least)}
        shown = ",".join(str(value) for value in default) if isinstance(default, (tuple, list)) else default
        text = help if default is None or "action" in others else f"{help} (default: {shown})"
        group.add_argument(*flags, help=text.replace("%", "%%"), **others)

    return add


def add_shape_options(parser: argparse.ArgumentParser, dtype: str) -> None:
    """Options of random weights: see `toolkit.checkpoints.random_model`."""
    add = adder(parser.add_argument_group("random weights"))
    shape = "random weights in the shape of a known model: tiny, small, llama-3.2-1b, ... (an unknown name lists them)"
    add("--shape", metavar="NAME", help=shape)
    add("--shape-dtype", choices=STORED_DTYPES, default=dtype, help="type that random weights are stored in")
    add("--work-dir", metavar="DIR", type=Path, help="where files of the run are written, in place of temporary files")


def add_prompt_options(add: Callable[..., Any]) -> None:
    """Options that `toolkit.prompts.prompts_for` reads."""
    add("--prompts", metavar="FILE", type=Path, help="one prompt a line, or prompts separated by blank lines")
    add("--raw", action="store_true", help="continue the prompts as they are, without the chat template")


def add_quiet(add: Callable[..., Any]) -> None:
    add("--quiet", action="store_true", help="leave out the lines that show progress")


def listed(parse: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """A reader of values between commas; the same value twice counts once."""
    return lambda text: tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))


def one_of(names: Any, what: str) -> Callable[[str], str]:
    """A reader of one of these names."""

    def parse(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; there are {', '.join(names)}")
        return name

    return parse
