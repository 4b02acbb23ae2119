"""Tokens per pass of plain decoding, chains, SpecInfer, top-k, Sequoia's and adaptive trees, on one pair of models.

    python scripts/compare_methods.py --help

With --same-contexts all methods draft wherever a pass of one of them, the driver, begins, and what each would yield
there on average is compared: contexts are the driver's, and another method's own tokens per pass differ a little.

With --from-recorded the models are replaced by laws recorded along texts, which is an approximation: nodes get the laws
of their position, whatever their branch.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from comparison.cells import Setting, cells, settings
from comparison.options import parse_arguments

from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from comparison.sources import Source
    from comparison.tables import Grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.plots is not None:
        from comparison.plots import check_matplotlib

        check_matplotlib()
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    from comparison.sources import pair_source, record_pair, recorded_source

    def note(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    kinds = settings(arguments.temperatures, arguments.top_ps)
    if arguments.record is not None:
        places = record_pair(arguments, kinds)
        note(f"{arguments.record}: laws at {places} places in texts of {len(kinds)} samplings")
        return 0
    recorded = arguments.from_recorded is not None
    source = recorded_source(arguments, note) if recorded else pair_source(arguments, kinds, note)
    _show(arguments, source, _measure(arguments, kinds, source, note))
    return 0


def _measure(
    arguments: argparse.Namespace, kinds: list[Setting], source: "Source", note: Callable[[str], None]
) -> "Grid":
    """Measure the cells that are missing; the whole grid as far as it is known."""
    from comparison.records import Cells, environment
    from comparison.tables import Grid, row

    wanted = list(cells(arguments.methods, arguments.sizes, arguments.depth, kinds, arguments.driver))
    with closing(Cells(source.setup, environment(), arguments.json, arguments.resume)) as kept:
        known = {cell for cell in wanted if kept.has(cell, source.workload(cell.setting))}
        missing = [] if arguments.only_tables else [cell for cell in wanted if cell not in known]
        for number, measured in enumerate(source.measure(missing), start=1):
            kept.add(measured)
            note(f"{number}/{len(missing)} {row(measured)}")
        return Grid(arguments.methods, arguments.sizes, arguments.depth, kinds, kept.measured, arguments.driver)


def _show(arguments: argparse.Namespace, source: "Source", grid: "Grid") -> None:
    from comparison.tables import heading, tables

    if arguments.beyond_end:
        grid = grid.with_tokens_beyond_end()
    text = "\n".join((*heading(source.setup, grid, arguments.beyond_end), *tables(grid)))
    print(text, flush=True)
    if arguments.markdown is not None:
        try:
            arguments.markdown.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--markdown {arguments.markdown}: cannot be written ({error.strerror})") from error
    if arguments.plots is not None:
        from comparison.plots import draw_figures

        draw_figures(grid, arguments.plots, arguments.plot_size)


if __name__ == "__main__":
    sys.exit(main())
