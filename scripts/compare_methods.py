"""Tokens per pass of chains, SpecInfer, top-k, Sequoia's and adaptive trees, at the same contexts of one pair.

    python scripts/compare_methods.py --help

All methods draft wherever a pass of one of them, the driver, begins, and what each would yield there on average is
compared: contexts are the driver's, and another method's own tokens per pass differ a little.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from comparison.cells import FORMAT, METHODS, MOST_DEPTH, REFERENCE, Cell, Grid, kept_cells, settings
from toolkit.options import add_prompt_options, add_quiet, adder, listed, one_of
from toolkit.output import environment, json_lines, progress

from offload_runtime.errors import UsageError
from offload_runtime.options.arguments import model_options, model_parser
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import real_number, whole_number

if TYPE_CHECKING:  # what needs torch is imported where it is used: `--help` answers before that
    from comparison.same_contexts import Pair

DESCRIPTION = """\
Tokens per pass of the target, by method, tree size and sampling, on one pair of models, prompts and seeds.

One method, the driver, writes the replies. At the start of each of its passes every method drafts its tree under the
same text, the target scores it, and what counts is how many tokens the method's rule yields from that tree on average
over the rule's own random numbers (at temperature 0 and where nodes are matched: how many it yields), up to the text's
end. Only the path that the driver accepts goes into the text. A cell of the table goes through the prompts, again with
other seeds if need be, until it has --passes contexts and --replies replies; the pass that brings a reply to
--reply-tokens counts whole. Intervals (95 %) treat the prompts as independent; ratios compare the same contexts."""
EPILOG = """\
examples:
  python scripts/compare_methods.py                                      the demonstration pair
  python scripts/compare_methods.py --json cells.jsonl --plot figure.svg   go on where a run was ended
  python scripts/compare_methods.py --passes 600 --reply-tokens 24

exit codes: 0 ok, 2 wrong use, 3 model files missing or damaged, 4 does not fit, 5 draft does not match, 130 interrupted
"""
RANDOM_PROMPTS, RANDOM_TOKENS = 16, 16  # for a model without a tokenizer
_INSTEAD = {"tree": "--methods", "verification": "--methods", "tree_size": "--sizes", "tree_depth": "--depth"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = model_parser("python scripts/compare_methods.py", DESCRIPTION, EPILOG)
    add = adder(parser.add_argument_group("what to compare", "Lists are separated by commas."))
    known = "; ".join(f"{name}: {method.meaning}" for name, method in METHODS.items())
    method, size = one_of(METHODS, "method"), whole_number(2, 4096)
    add("--methods", metavar="NAMES", type=listed(method), help=f"{known} (default: all)")
    add("--sizes", metavar="N", type=listed(size), default=(16, 64, 256, 768), help="nodes of the trees, root included")
    depth = whole_number(1, MOST_DEPTH)
    add("--depth", metavar="N", type=depth, default=MOST_DEPTH, help=f"most levels of a tree, at most {MOST_DEPTH}")
    zero = "0 takes the likeliest token always"
    add("--temperatures", metavar="X", type=listed(real_number(0)), default=(0.0, 0.6, 1.0), help=zero)
    share = listed(real_number(0, 1, above=True))
    add("--top-ps", metavar="X", type=share, default=(1.0, 0.9), help="1 is off; not varied at temperature 0")
    add = adder(parser.add_argument_group("measurement"))
    add_prompt_options(add)
    add("--driver", metavar="NAME", type=method, default=REFERENCE, help="the method that writes the replies")
    near = "count only contexts at most N tokens before the end of a text that ends"
    add("--near-end", metavar="N", type=whole_number(1), help=near)
    add("--passes", default=200, help="least contexts of a size and sampling")
    add("--replies", default=16, help="least replies; at temperature 0 at most one to a prompt")
    add("--reply-tokens", default=128, help="tokens after which a reply ends")
    add("--seed", default=0, least=0, help="reply r of every cell has seed N + r")
    add("--threads", metavar="N", type=whole_number(1), help="threads to compute with")
    add("--contexts", default=4000, least=2, help="positions in texts to measure acceptance at, per sampling")
    add = adder(parser.add_argument_group("output"))
    kept = "write every cell as a JSON line as soon as it is measured; cells that are there already are not measured"
    add("--json", metavar="FILE", type=Path, help=kept)
    add("--plot", metavar="FILE", type=Path, help="draw tokens per pass by nodes there (SVG; needs matplotlib)")
    add_quiet(add)
    parsed = parser.parse_args(arguments)
    for name, instead in _INSTEAD.items():
        if getattr(parsed, name) not in ("auto", None):
            parser.error(f"argument --{name.replace('_', '-')}: here it is {instead} that says it")
    if parsed.plot is not None and find_spec("matplotlib") is None:
        parser.error("argument --plot: figures need matplotlib, which is not installed: pip install matplotlib")
    parsed.methods = parsed.methods or tuple(METHODS)
    return parsed


def _run(arguments: argparse.Namespace) -> int:
    import torch
    from comparison.tables import draw_figure, heading, tables

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    pair = _pair(arguments)
    setup = _setup(arguments, pair)
    grid = _measured(arguments, pair, setup)
    print("\n".join([*heading(setup, grid), *tables(grid)]))
    if arguments.plot is not None:
        draw_figure(grid, arguments.plot)
    return 0


def _pair(arguments: argparse.Namespace) -> "Pair":
    """Raises UsageError where there is no draft."""
    from comparison.same_contexts import Pair
    from toolkit.prompts import HELD_OUT, prompts_for

    from loaders.checkpoint.model_source import load_tokenizer
    from loaders.checkpoint.read_spec import read_spec
    from offload_runtime.loading.fetching import fetched
    from offload_runtime.text.prompt import encode_prompt

    options = model_options(arguments)
    if not isinstance(options.draft, Path):  # "auto": a comparison takes the draft it is given
        raise UsageError("nothing to compare without a draft: --draft DIR")
    options = fetched(options, arguments.yes, arguments.quiet)
    model, vocab_size = options.model, read_spec(options.model).vocab_size
    file = arguments.prompts or HELD_OUT
    prompts = prompts_for(model, vocab_size, file, arguments.raw, RANDOM_TOKENS, count=RANDOM_PROMPTS)
    ids = [encode_prompt(prompt, lambda: load_tokenizer(model)) for prompt in prompts]
    return Pair(options, ids, arguments.driver, arguments.reply_tokens, arguments.seed)


def _setup(arguments: argparse.Namespace, pair: "Pair") -> dict[str, Any]:
    """What all cells have in common."""
    import hashlib
    import json

    from loaders.hub.names import directory_name

    assert isinstance(pair.options.draft, Path)
    return {
        "model": directory_name(pair.options.model),
        "draft": directory_name(pair.options.draft),
        "dtype": pair.options.dtype,
        "prompts": hashlib.sha256(json.dumps(pair.prompts).encode()).hexdigest()[:16],
        **{name: getattr(arguments, name) for name in ("driver", "depth", "reply_tokens", "seed", "near_end")},
    }


def _measured(arguments: argparse.Namespace, pair: "Pair", setup: dict[str, Any]) -> Grid:
    """Measure the cells that are missing; the whole grid."""
    from comparison.same_contexts import Enough, measure_cells
    from comparison.tables import row

    note, enough = progress(arguments.quiet), Enough(arguments.passes, arguments.replies, arguments.near_end)
    kinds = settings(arguments.temperatures, arguments.top_ps)
    kept = kept_cells(arguments.json, setup) if arguments.json else {}
    every = [Cell(method, size, kind) for size in arguments.sizes for kind in kinds for method in arguments.methods]
    done = [one.cell for one in kept.values() if enough.of(one.replies, len(one.replies), pair, one.cell.setting)]
    if wanted := [cell for cell in every if cell not in done]:
        known = pair.acceptance(list(dict.fromkeys(cell.setting for cell in wanted)), arguments.contexts, note)
        with json_lines(arguments.json, mode="a") as write:
            write("run", {"format": FORMAT, "setup": setup, **environment()})
            for number, measured in enumerate(measure_cells(pair, known, arguments.depth, enough, wanted), start=1):
                kept[measured.cell] = measured
                write("cell", measured.as_record())
                note(f"{number}/{len(wanted)} {row(measured)}")
    return Grid(arguments.methods, arguments.sizes, kinds, kept)


if __name__ == "__main__":
    sys.exit(main())
