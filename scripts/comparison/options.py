"""The command line of the comparison. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from comparison.cells import METHODS, MOST_DEPTH, REFERENCE
from offload_runtime.options.arguments import model_parser
from offload_runtime.options.readers import Number, real_number, whole_number

DESCRIPTION = """\
Tokens per pass of the target, by method, tree size and sampling, on one pair of models, prompts and seeds.

Every method runs through the whole runtime. A reply goes on until it has --reply-tokens tokens or ends; the pass that
gets it there counts whole, so that long passes are neither cut nor left out. A cell of the table goes through the
prompts, again with other seeds if need be, until it has --passes passes and --replies replies.
    tokens per pass = tokens of all replies / passes of the target, the first one of each reply included
Of a pass in which the text ends, the tokens up to its end count (see --beyond-end).
Intervals (95 %) treat the prompts as independent; ratios compare replies to the same prompts with the same seeds."""

EPILOG = """\
the same contexts: with --same-contexts one method, the driver, writes the replies. At the start of each of its passes
every method drafts its tree under the same text, the target scores it, and what counts is how many tokens the method's
rule yields from that tree on average over the rule's own random numbers (at temperature 0 and where nodes are matched:
how many it yields). Only the driver's verdict goes into the text. Intervals of ratios are several times narrower than
those of replies that part, and nothing is timed. The contexts are those of the driver: tokens per pass of another
method by itself, whose passes start elsewhere, differ a little.

recorded laws: --record FILE saves the laws of both models along texts that the target writes; --from-recorded FILE
replays the same draft, trees and verification on them, without the models. That is an approximation: every node at
depth d under position t gets the laws recorded at position t + d, whatever the tokens on its branch.

examples:
  python scripts/compare_methods.py                                            the demonstration pair
  python scripts/compare_methods.py --draft-bits 4 --json cells.jsonl          the target drafts for itself, rounded
  python scripts/compare_methods.py --resume cells.jsonl --plots docs          go on where a run was ended
  python scripts/compare_methods.py --resume a.jsonl b.jsonl --markdown t.md   one table of what two runs measured
  python scripts/compare_methods.py --same-contexts --passes 600 --reply-tokens 24   narrow ratios, soon
  python scripts/compare_methods.py --record laws.safetensors --contexts 4000
  python scripts/compare_methods.py --from-recorded laws.safetensors --sizes 64,256

exit codes: 0 ok, 2 wrong use, 3 model files missing or damaged, 4 does not fit, 5 draft does not match, 130 interrupted
"""

DRAFT_BITS = (2, 3, 4)
_INSTEAD = {"tree": "--methods", "verification": "--methods", "tree_size": "--sizes", "tree_depth": "--depth"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    for name, instead in _INSTEAD.items():
        if getattr(parsed, name) not in ("auto", None):
            parser.error(f"argument --{name.replace('_', '-')}: here it is {instead} that says it")
    if parsed.draft_bits is not None and parsed.draft != "auto":
        parser.error("argument --draft-bits: the target drafts for itself, or --draft does, not both")
    if parsed.from_recorded is not None:
        _check_replay(parser, parsed)
    _check_methods(parser, parsed)
    if parsed.record is not None and (parsed.resume or parsed.from_recorded):
        parser.error("argument --record: it measures no cells, so it goes with neither --resume nor --from-recorded")
    if parsed.json is None and len(parsed.resume) == 1:
        parsed.json = parsed.resume[0]
    return parsed


def _check_replay(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    for name in ("model", "prompts", "draft_bits"):
        if getattr(parsed, name) is not None:
            parser.error(f"argument --{name.replace('_', '-')}: the recording has fixed it")


def _check_methods(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Fill in methods and driver; exits where they cannot be compared in this way."""
    if parsed.same_contexts and (parsed.record or parsed.from_recorded):
        parser.error(
            "argument --same-contexts: it needs the models, so it goes with neither --record nor --from-recorded"
        )
    if parsed.driver is not None and not parsed.same_contexts:
        parser.error("argument --driver: it goes with --same-contexts")
    if parsed.same_contexts and parsed.driver is None:
        parsed.driver = REFERENCE
    refused = {name: reason for name in METHODS if (reason := _refusal(parsed, name))}
    if parsed.driver in refused:
        parser.error(f"argument --driver: {parsed.driver} {refused[parsed.driver]}")
    for name in parsed.methods or ():
        if name in refused:
            parser.error(f"argument --methods: {name} {refused[name]}")
    parsed.methods = parsed.methods or tuple(name for name in METHODS if name not in refused)


def _refusal(parsed: argparse.Namespace, name: str) -> str | None:
    """Why a method cannot be compared in this way; None where it can."""
    method = METHODS[name]
    if parsed.same_contexts and method.tree == "none":
        return "drafts no tree, and yields one token in every context"
    if parsed.same_contexts and not method.repeatable:
        return "chooses by measured times, not by the context alone"
    if parsed.from_recorded is not None and not method.repeatable:
        return "chooses by measured times, which recorded laws do not have"
    if method.is_damped and not parsed.same_contexts:
        return "is a part of what auto does, so it is compared with --same-contexts only"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = model_parser("python scripts/compare_methods.py", DESCRIPTION, EPILOG)
    _add_grid_options(parser)
    _add_measurement_options(parser)
    _add_output_options(parser)
    return parser


def _add_grid_options(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(f"{name}: {method.meaning}" for name, method in METHODS.items())
    group = parser.add_argument_group("what to compare", "Lists are separated by commas.")
    group.add_argument("--methods", metavar="NAMES", type=_listed(_method), help=f"{known} (default: all that fit)")
    add = _adder(group)
    add("--sizes", "N", _listed(whole_number(2, 4096)), (16, 64, 256, 768), "nodes of the trees, root included")
    group.add_argument(
        "--depth",
        metavar="N",
        type=whole_number(1, MOST_DEPTH),
        default=MOST_DEPTH,
        help=f"most levels of a tree, and of an adaptive one its levels (default: size - 1, at most {MOST_DEPTH})",
    )
    add("--temperatures", "X", _listed(real_number(0)), (0.0, 0.6, 1.0), "0 takes the likeliest token always")
    add("--top-ps", "X", _listed(real_number(0, 1, above=True)), (1.0, 0.9), "1 is off; not varied at temperature 0")


def _add_measurement_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement")
    add = _adder(group)
    group.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="one prompt a line, or prompts separated by blank lines (default: 64 questions about Python, of modules "
        "that the demonstration pair was not trained on)",
    )
    group.add_argument("--raw", action="store_true", help="continue the prompts as they are, without the chat template")
    group.add_argument(
        "--draft-bits",
        metavar="N",
        type=_draft_bits,
        help="let the target draft for itself, with the weights of its layers rounded to 2, 3 or 4 bits: written for "
        "the run and deleted afterwards",
    )
    group.add_argument(
        "--same-contexts",
        action="store_true",
        help="let every method draft where the passes of one of them begin, and compare what they yield on average",
    )
    group.add_argument(
        "--driver",
        metavar="NAME",
        type=_method,
        help=f"the method that writes the replies of --same-contexts (default: {REFERENCE})",
    )
    add("--passes", "N", whole_number(1), 200, "least passes of a cell, or contexts of a size and sampling")
    add("--replies", "N", whole_number(1), 16, "least replies of a cell; at temperature 0 at most one to a prompt")
    add("--reply-tokens", "N", whole_number(1), 128, "tokens after which a reply ends")
    add("--seed", "N", whole_number(0, 2**62), 0, "reply r of every cell has seed N + r")
    group.add_argument("--threads", metavar="N", type=whole_number(1), help="threads to compute with")
    group.add_argument("--record", metavar="FILE", type=Path, help="save laws instead of comparing (safetensors)")
    add("--contexts", "N", whole_number(2), 4000, "places in texts to record or measure acceptance at, per sampling")
    group.add_argument("--from-recorded", metavar="FILE", type=Path, help="replay recorded laws: an approximation")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--json", metavar="FILE", type=Path, help="write every cell as a JSON line as soon as it is measured")
    add(
        "--resume",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="take the cells in these JSON lines as measured; if there is one file and no --json, new cells go there",
    )
    add("--only-tables", action="store_true", help="measure nothing: show what --resume holds so far")
    add(
        "--beyond-end",
        action="store_true",
        help="in tables and figures, count what the pass in which a text ends accepts behind its end too: nearer to "
        "the value for long texts where a pass accepts a large part of a reply",
    )
    add("--markdown", metavar="FILE", type=Path, help="write the tables there too")
    add("--plots", metavar="DIR", type=Path, help="write figures there (SVG; needs matplotlib)")
    add("--plot-size", metavar="N", type=whole_number(2), help="tree size of the figures over temperature and top-p")
    add("--quiet", action="store_true", help="leave out the lines that show progress")


def _adder(group: argparse._ArgumentGroup) -> Callable[..., None]:
    def add(flag: str, metavar: str, parse: Callable[[str], object], default: object, meaning: str) -> None:
        shown = ",".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
        group.add_argument(
            flag, metavar=metavar, type=parse, default=default, help=f"{meaning} (default: {shown})".replace("%", "%%")
        )

    return add


def _listed(parse: Callable[[str], Number | str]) -> Callable[[str], tuple[Number | str, ...]]:
    """A reader of values between commas; the same value twice counts once."""

    def parse_list(text: str) -> tuple[Number | str, ...]:
        return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))

    return parse_list


def _method(name: str) -> str:
    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return name


def _draft_bits(text: str) -> int:
    if text not in map(str, DRAFT_BITS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, DRAFT_BITS))}")
    return int(text)
