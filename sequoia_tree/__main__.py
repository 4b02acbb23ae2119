"""`python -m sequoia_tree`: look at trees, in the terminal or as SVG."""

import argparse
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sequoia_tree.shapes.baselines import best_chains, chains, k_ary
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE, chain, optimal_tree
from sequoia_tree.shapes.picture import summary, svg, text
from sequoia_tree.tree import Tree, read_json

_SHAPES = ("sequoia", "chain", "chains", "k-ary")
_DEFAULT_SIZE, _MOST_NODES = 64, 1_000_000
_DEFAULT_LINES = 32
_NO_TERMINAL = (120, 24)  # columns, lines: for what goes into a file or a pipe
_EXAMPLES = """\
NUMBERS are the probabilities that the first, second, … child of a node is the
accepted one, such as 0.8,0.1,0.05. A JSON FILE holds them as a list, or as such
a list under the key "positional". Without them: those of Llama3-8B drafting for
Llama3-70B, as published with Sequoia.

examples:
  python -m sequoia_tree show
  python -m sequoia_tree show --size 768 --depth 18 --svg tree.svg
  python -m sequoia_tree show --shape chains --children 16 --size 769
  python -m sequoia_tree show tree.json --lines 0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; what is wrong with it is told in one line, with exit code 2."""
    parser = _Parser(prog="python -m sequoia_tree", description="Look at trees of draft tokens.", allow_abbrev=False)
    show = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "show",
        help="draw a tree and say how many tokens per pass it is good for",
        description="Draw a tree from left to right, each node as its child number and the chance that it is accepted.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_show_options(show)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the lines that trees are drawn with
    try:
        _show(options)
    except ValueError as error:
        show.error(str(error))
    except OSError as error:
        if error.filename is None:  # stdout itself; what is left in it must not fail again when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever reads has enough, as `head` has
            show.error(f"{error.filename or 'output'}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells errors in one line, without the usage, which would fill the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tree", nargs="?", metavar="TREE.json", type=Path, help="a tree that was saved (default: make one)"
    )
    parser.add_argument(
        "--acceptance",
        metavar="NUMBERS|FILE",
        type=_acceptance,
        default=DEFAULT_ACCEPTANCE,
        help="chances of the first, second, … child; see below",
    )
    made = parser.add_argument_group("the tree to make, unless TREE.json is given")
    made.add_argument(
        "--shape",
        choices=_SHAPES,
        help="sequoia: the best tree (default); chain: one line; chains: independent lines of equal length; "
        "k-ary: as many children everywhere, filled level by level",
    )
    made.add_argument("--size", metavar="N", type=_count, help=f"nodes, root included (default: {_DEFAULT_SIZE})")
    made.add_argument("--depth", metavar="N", type=_count, help="deepest level (default: no limit)")
    made.add_argument(
        "--children",
        metavar="N",
        type=_count,
        help="sequoia: most children of a node (default: one for each acceptance); chains: how many "
        "(default: the best number); k-ary: how many (default: 2)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--lines",
        metavar="N",
        type=_count,
        default=_DEFAULT_LINES,
        help="lines to draw, 0 for all (default: %(default)s)",
    )
    output.add_argument("--svg", metavar="FILE", type=Path, help="also draw the whole tree into this SVG file")
    output.add_argument("--save", metavar="FILE", type=Path, help="also save the tree as JSON")


def _show(options: argparse.Namespace) -> None:
    tree = _made(options) if options.tree is None else _loaded(options)
    if options.save:
        tree.save(options.save)
    if options.svg:
        options.svg.write_text(svg(tree, options.acceptance), encoding="utf-8")
    columns = shutil.get_terminal_size(_NO_TERMINAL).columns
    print(summary(tree, options.acceptance, columns))
    print("each node: child number, chance that it is accepted\n")
    limits = (options.lines, columns) if options.lines else ()
    print(text(tree, options.acceptance, *limits), flush=True)


def _loaded(options: argparse.Namespace) -> Tree:
    for name in ("shape", "size", "depth", "children"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for a tree to be made, but {options.tree} is given")
    return Tree.load(options.tree)


def _made(options: argparse.Namespace) -> Tree:
    size = _DEFAULT_SIZE if options.size is None else options.size
    depth, children = options.depth, options.children
    if options.shape == "k-ary":
        return k_ary(2 if children is None else children, size, depth)
    if options.shape == "chain":
        if children is not None:
            raise ValueError("--children is not for a chain, which has one child everywhere")
        return chain(size if depth is None else min(size, depth + 1))
    if options.shape != "chains":
        return optimal_tree(options.acceptance, size, depth, children)
    if children is None:
        return best_chains(options.acceptance, size, depth)
    length = (size - 1) // max(1, children)
    return chains(children, length if depth is None else min(length, depth))


def _count(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) <= _MOST_NODES):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {_MOST_NODES:,}, got {value!r}")
    return int(value)


def _acceptance(value: str) -> list[float]:
    try:
        return [float(number) for number in value.split(",")]
    except ValueError:
        pass
    try:
        return _vector(read_json(Path(value)))
    except FileNotFoundError:
        raise argparse.ArgumentTypeError(f"neither numbers such as 0.8,0.1,0.05 nor a file: {value!r}") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{value}: {error.strerror}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value} holds no acceptance: {error}") from None


def _vector(content: object) -> list[float]:
    vector = content.get("positional") if isinstance(content, dict) else content
    if not isinstance(vector, list) or not all(type(number) in (int, float) for number in vector):
        raise ValueError('it must be a list of numbers, or {"positional": [0.8, 0.1]}')
    return vector


if __name__ == "__main__":
    sys.exit(main())
