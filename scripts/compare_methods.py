"""Tokens per pass of plain decoding, chains, SpecInfer, top-k, Sequoia's and adaptive trees, on one pair of models.

    python scripts/compare_methods.py --help

With --same-contexts all methods draft wherever a pass of one of them, the driver, begins, and what each would yield
there on average is compared: contexts are the driver's, and another method's own tokens per pass differ a little.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from comparison.cells import METHODS, Cell, Measured, cells, settings
from comparison.options import parse_arguments
from toolkit.output import Note, progress, say, write_file

from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from comparison.measure import Workload
    from comparison.pair import Pair
    from comparison.tables import Grid

RANDOM_PROMPTS, RANDOM_TOKENS = 16, 16  # for a model without a tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        from comparison.plots import check_matplotlib

        check_matplotlib()
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    pair = _pair(arguments)
    setup = _setup(arguments, pair)
    _show(arguments, setup, _measured(arguments, pair, setup, progress(arguments.quiet)))
    return 0


def _pair(arguments: argparse.Namespace) -> "Pair":
    """The pair as given; with --draft-bits its draft does not exist yet. Raises UsageError where there is no draft."""
    from comparison.pair import Pair
    from toolkit.prompts import HELD_OUT, encoded, prompts_for

    from loaders.checkpoint.read_spec import read_spec
    from offload_runtime.loading.fetching import fetched
    from offload_runtime.options.arguments import model_options

    options = model_options(arguments)
    if not isinstance(options.draft, Path):  # "auto": a comparison takes the draft it is given
        options = replace(options, draft=None)
    if set(arguments.methods) != {"plain"} and options.draft is None and arguments.draft_bits is None:
        raise UsageError("nothing to compare without a draft: --draft DIR, or --draft-bits 4 for the target's own")
    options = fetched(options, arguments.yes, arguments.quiet)
    vocab_size = read_spec(options.model).vocab_size
    file, raw = arguments.prompts or HELD_OUT, arguments.raw
    prompts = prompts_for(options.model, vocab_size, file, raw, RANDOM_TOKENS, count=RANDOM_PROMPTS)
    return Pair(options, encoded(prompts, options.model), arguments.reply_tokens)


def _setup(arguments: argparse.Namespace, pair: "Pair") -> dict[str, Any]:
    """What all cells have in common."""
    from toolkit.prompts import digest

    from loaders.hub.names import directory_name

    draft = pair.options.draft
    return {
        "model": directory_name(pair.options.model),
        "draft": directory_name(draft) if isinstance(draft, Path) and arguments.draft_bits is None else None,
        "draft_bits": arguments.draft_bits,
        "dtype": pair.options.dtype,
        "prompts": digest(pair.prompts),
        "reply_tokens": arguments.reply_tokens,
        "seed": arguments.seed,
        "near_end": arguments.near_end,
    }


def _measured(arguments: argparse.Namespace, pair: "Pair", setup: dict[str, Any], note: Note) -> "Grid":
    """Measure the cells that are missing; the whole grid as far as it is known."""
    from comparison.kept import Cells
    from comparison.measure import Workload
    from comparison.tables import Grid, row

    kinds = settings(arguments.temperatures, arguments.top_ps)
    wanted = list(cells(arguments.methods, arguments.sizes, arguments.depth, kinds, arguments.driver))
    seed, enough = arguments.seed, (arguments.reply_tokens, arguments.passes, arguments.replies)
    workload = Workload(len(pair.prompts), *enough, seed)
    with ExitStack() as resources:
        kept = Cells(setup, arguments.json, arguments.resume, resources)
        missing = [] if arguments.only_tables else [cell for cell in wanted if not kept.has(cell, workload)]
        for number, measured in enumerate(_measure(arguments, pair, workload, missing, note), start=1):
            kept.add(measured)
            note(f"{number}/{len(missing)} {row(measured)}")
    return Grid(arguments.methods, arguments.sizes, arguments.depth, kinds, kept.measured, arguments.driver)


def _measure(
    arguments: argparse.Namespace, pair: "Pair", workload: "Workload", wanted: Sequence[Cell], note: Note
) -> Iterator[Measured]:
    from comparison.measure import measure_cell
    from comparison.pair import load_key
    from comparison.same_contexts import measure_same_contexts

    if not wanted:
        return
    kinds = list(dict.fromkeys(cell.setting for cell in wanted))
    with _with_draft(arguments, pair) as complete:
        if arguments.same_contexts:
            acceptance = complete.acceptance(kinds, arguments.contexts, arguments.seed, note)
            yield from measure_same_contexts(complete, acceptance, workload, wanted, arguments.near_end)
            return
        if arguments.draft_bits is not None:
            note(f"measuring acceptance of the target's own draft at {arguments.contexts} positions per sampling")
            complete.keep_acceptance(kinds, arguments.contexts, arguments.seed)
        for (method, size, depth), group in groupby(wanted, load_key):
            with complete.runtime(method, size, depth) as runtime:
                for cell in group:
                    steps = complete.steps(runtime, cell.setting, METHODS[method].repeatable)
                    yield measure_cell(cell, steps, workload)


@contextmanager
def _with_draft(arguments: argparse.Namespace, pair: "Pair") -> Iterator["Pair"]:
    """The pair with the draft that --draft-bits asks for, for the block."""
    from comparison.rounding import rounded_draft

    if arguments.draft_bits is None:
        yield pair
        return
    with rounded_draft(pair.options.model, arguments.draft_bits) as directory:
        yield replace(pair, options=replace(pair.options, draft=directory))


def _show(arguments: argparse.Namespace, setup: dict[str, Any], grid: "Grid") -> None:
    from comparison.tables import heading, tables

    lines = [*heading(setup, grid), *tables(grid)]
    say(lines)
    if arguments.markdown is not None:
        write_file("--markdown", arguments.markdown, "\n".join(lines) + "\n")
    if arguments.plot is not None:
        from comparison.plots import draw_figure

        draw_figure(grid, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
