"""The command line of the comparison. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from toolkit.options import add_count, add_prompt_options, add_quiet, adder, listed, one_of

from comparison.cells import METHODS, MOST_DEPTH, REFERENCE
from offload_runtime.options.arguments import model_parser
from offload_runtime.options.readers import real_number, whole_number

DESCRIPTION = """\
Tokens per pass of the target, by method, tree size and sampling, on one pair of models, prompts and seeds.

Every method runs through the whole runtime. A reply goes on until it has --reply-tokens tokens or ends; the pass that
gets it there counts whole, so that long passes are neither cut nor left out. A cell of the table goes through the
prompts, again with other seeds if need be, until it has --passes passes and --replies replies.
    tokens per pass = tokens of all replies / passes of the target, the first one of each reply included
Of a pass in which the text ends, the tokens up to its end count.
Intervals (95 %) treat the prompts as independent; ratios compare replies to the same prompts with the same seeds."""

EPILOG = """\
the same contexts: with --same-contexts one method, the driver, writes the replies. At the start of each of its passes
every method drafts its tree under the same text, the target scores it, and what counts is how many tokens the method's
rule yields from that tree on average over the rule's own random numbers (at temperature 0 and where nodes are matched:
how many it yields). Only the path that the driver accepts goes into the text. Intervals of ratios are several times
narrower than those of replies that part, and nothing is timed. The contexts are those of the driver: tokens per pass of
another method by itself, whose passes start elsewhere, differ a little.

examples:
  python scripts/compare_methods.py                                            the demonstration pair
  python scripts/compare_methods.py --draft-bits 4 --json cells.jsonl          the target drafts for itself, rounded
  python scripts/compare_methods.py --resume cells.jsonl --plot figure.svg     go on where a run was ended
  python scripts/compare_methods.py --resume a.jsonl b.jsonl --markdown t.md   one table of what two runs measured
  python scripts/compare_methods.py --same-contexts --passes 600 --reply-tokens 24   narrow ratios, soon

exit codes: 0 ok, 2 wrong use, 3 model files missing or damaged, 4 does not fit, 5 draft does not match, 130 interrupted
"""

DRAFT_BITS = (2, 3, 4)
_INSTEAD = {"tree": "--methods", "verification": "--methods", "tree_size": "--sizes", "tree_depth": "--depth"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = model_parser("python scripts/compare_methods.py", DESCRIPTION, EPILOG)
    _add_grid_options(parser)
    _add_measurement_options(parser)
    _add_output_options(parser)
    parsed = parser.parse_args(arguments)
    for name, instead in _INSTEAD.items():
        if getattr(parsed, name) not in ("auto", None):
            parser.error(f"argument --{name.replace('_', '-')}: here it is {instead} that says it")
    if parsed.draft_bits is not None and parsed.draft != "auto":
        parser.error("argument --draft-bits: the target drafts for itself, or --draft does, not both")
    _check_methods(parser, parsed)
    if parsed.json is None and len(parsed.resume) == 1:
        parsed.json = parsed.resume[0]
    return parsed


def _check_methods(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Fill in methods and driver; exits where they cannot be compared in this way."""
    if parsed.driver is not None and not parsed.same_contexts:
        parser.error("argument --driver: it goes with --same-contexts")
    if parsed.near_end is not None and not parsed.same_contexts:
        parser.error("argument --near-end: it goes with --same-contexts")
    if parsed.same_contexts and parsed.driver is None:
        parsed.driver = REFERENCE
    reasons = {name: reason for name in METHODS if (reason := _reason_against(parsed, name))}
    for option, names in (("driver", [parsed.driver]), ("methods", parsed.methods or ())):
        for name in names:
            if name in reasons:
                parser.error(f"argument --{option}: {name} {reasons[name]}")
    parsed.methods = parsed.methods or tuple(name for name in METHODS if name not in reasons)


def _reason_against(parsed: argparse.Namespace, name: str) -> str | None:
    """Why a method cannot be compared in this way; None where it can."""
    method = METHODS[name]
    if parsed.same_contexts and method.tree == "none":
        return "drafts no tree, and yields one token in every context"
    if parsed.same_contexts and not method.repeatable:
        return "chooses by measured times, not by the context alone"
    if method.automatic and not parsed.same_contexts:
        return "is a part of what auto does, so it is compared with --same-contexts only"
    return None


def _add_grid_options(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(f"{name}: {method.meaning}" for name, method in METHODS.items())
    add = adder(parser.add_argument_group("what to compare", "Lists are separated by commas."))
    method, number = one_of(METHODS, "method"), whole_number(2, 4096)
    add("--methods", metavar="NAMES", type=listed(method), help=f"{known} (default: all that fit)")
    sizes, temperatures, top_ps = (16, 64, 256, 768), (0.0, 0.6, 1.0), (1.0, 0.9)
    add("--sizes", metavar="N", type=listed(number), default=sizes, help="nodes of the trees, root included")
    deepest = f"most levels of a tree, at most {MOST_DEPTH}; one of n nodes never has more than n - 1"
    add("--depth", metavar="N", type=whole_number(1, MOST_DEPTH), default=MOST_DEPTH, help=deepest)
    zero = "0 takes the likeliest token always"
    add("--temperatures", metavar="X", type=listed(real_number(0)), default=temperatures, help=zero)
    share = listed(real_number(0, 1, above=True))
    add("--top-ps", metavar="X", type=share, default=top_ps, help="1 is off; not varied at temperature 0")


def _add_measurement_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement")
    add = adder(group)
    add_prompt_options(group)
    rounded = "let the target draft for itself, with the weights of its layers rounded to 2, 3 or 4 bits for the run"
    add("--draft-bits", metavar="N", type=_draft_bits, help=rounded)
    same = "let every method draft where the passes of one of them begin, and compare what they yield on average"
    group.add_argument("--same-contexts", action="store_true", help=same)
    driver = f"the method that writes the replies of --same-contexts (default: {REFERENCE})"
    add("--driver", metavar="NAME", type=one_of(METHODS, "method"), help=driver)
    near = "count only contexts of --same-contexts at most N tokens before the end of a text that ends"
    add("--near-end", metavar="N", type=whole_number(1), help=near)
    add_count(add, "--passes", 200, 1, "least passes of a cell, or contexts of a size and sampling")
    add_count(add, "--replies", 16, 1, "least replies of a cell; at temperature 0 at most one to a prompt")
    add_count(add, "--reply-tokens", 128, 1, "tokens after which a reply ends")
    add("--seed", metavar="N", type=whole_number(0, 2**62), default=0, help="reply r of every cell has seed N + r")
    add("--threads", metavar="N", type=whole_number(1), help="threads to compute with")
    add_count(add, "--contexts", 4000, 2, "positions in texts to measure acceptance at, per sampling")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", metavar="FILE", type=Path, help="write every cell as a JSON line as soon as it is measured")
    resume = (
        "take the cells in these JSON lines as measured; if there is one file and no --json, new cells are added to it"
    )
    add("--resume", metavar="FILE", type=Path, nargs="+", default=[], help=resume)
    add("--only-tables", action="store_true", help="measure nothing: show what --resume holds so far")
    add("--markdown", metavar="FILE", type=Path, help="write the tables there too")
    add("--plot", metavar="FILE", type=Path, help="draw tokens per pass by nodes there (SVG; needs matplotlib)")
    add_quiet(group)


def _draft_bits(text: str) -> int:
    if text not in map(str, DRAFT_BITS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, DRAFT_BITS))}")
    return int(text)
