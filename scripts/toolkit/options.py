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
    """As `group.add_argument`, with the default named at the end of the help."""

    def add(*flags: str, default: Any = None, help: str, **others: Any) -> None:
        shown = ",".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
        text = help if default is None else f"{help} (default: {shown})"
        group.add_argument(*flags, default=default, help=text.replace("%", "%%"), **others)

    return add


def add_count(add: Callable[..., Any], flag: str, default: int, least: int, help: str) -> None:
    """An option whose value is a whole number of at least `least`."""
    add(flag, metavar="N", type=whole_number(least), default=default, help=help)


def add_shape_options(parser: argparse.ArgumentParser, dtype: str) -> argparse._ArgumentGroup:
    """Options of random weights: see `toolkit.checkpoints.random_weights`."""
    group = parser.add_argument_group("random weights")
    add = adder(group)
    add("--shape", metavar="NAME|FILE", help="random weights in the shape of a known model (others are listed where a "
        "name is unknown: tiny, small, llama-3.2-1b, llama-2-70b, ...) or of a config.json")  # fmt: skip
    add("--shape-dtype", choices=STORED_DTYPES, default=dtype, help="type that random weights are stored in")
    add("--work-dir", metavar="DIR", type=Path, help="where files of the run are written, in place of temporary files")
    group.add_argument("--keep", action="store_true", help="keep random weights for the next run; needs --work-dir")
    return group


def add_prompt_options(group: argparse._ArgumentGroup) -> None:
    """Options that `toolkit.prompts.prompts_for` reads."""
    group.add_argument(
        "--prompts", metavar="FILE", type=Path, help="one prompt a line, or prompts separated by blank lines"
    )
    group.add_argument("--raw", action="store_true", help="continue the prompts as they are, without the chat template")


def add_quiet(group: argparse._ActionsContainer) -> None:
    group.add_argument("--quiet", action="store_true", help="leave out the lines that show progress")


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
