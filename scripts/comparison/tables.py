"""The tables, in Markdown, and the figure (as in Sequoia, arXiv 2402.12374)."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.output import table

from comparison.cells import REFERENCE, Grid, Measured, named
from comparison.estimates import Estimate, paired_ratio, tokens_per_pass
from offload_runtime.speculation.acceptance_store import Setting

_MISSING = "–"
# Text stays text, and the same figures give the same bytes.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sequoia-offload", "font.size": 9.0}


def row(measured: Measured) -> str:
    """A line for a cell that has just been measured."""
    counts = f"{measured.contexts} contexts of {len(measured.replies)} replies"
    return f"{measured.cell}: {_written(tokens_per_pass(measured))} tokens per pass in {counts}"


def heading(setup: Mapping[str, Any], grid: Grid) -> Iterator[str]:
    """What was compared on what, and what the figures mean."""
    yield f"# Expected tokens per pass at the same contexts: {setup['model']}, drafted by {setup['draft']}"
    yield ""
    yield (
        f"Contexts are the starts of the passes in which `{setup['driver']}` writes replies of {setup['reply_tokens']} "
        f"tokens, fewer where the text ended (seeds from {setup['seed']}). Every method drafts there and the target "
        "scores its tree; what counts is how many tokens the method's rule yields from that tree on average over the "
        "rule's own random numbers (at temperature 0, and where nodes are matched: how many it yields), up to the "
        "text's end. The passes of another method by itself start elsewhere, and its tokens per pass differ a little "
        "from these."
    )
    if setup["near_end"] is not None:
        yield f"Only contexts at most {setup['near_end']} tokens before the text's end count."
    yield ""
    yield (
        "Tokens per pass: tokens of all replies over contexts. ± and ranges: 95 %, prompts taken as independent. Trees "
        f"have at most {setup['depth']} levels; a chain no more nodes."
    )
    yield ""


def tables(grid: Grid) -> Iterator[str]:
    """Lines of Markdown: for every setting tokens per pass, and ratios to the reference."""
    titles = ["nodes", *map(str, grid.sizes)]
    for setting in grid.settings:
        yield f"## {named(setting).capitalize()}"
        yield ""
        yield "Tokens per pass, the most of every tree size in bold:"
        yield ""
        yield from table(titles, zip(grid.methods, *(_tokens(grid, size, setting) for size in grid.sizes)))
        yield ""
        if REFERENCE in grid.methods and len(grid.methods) > 1:
            yield f"Ratio to `{REFERENCE}`, context by context:"
            yield ""
            yield from table(titles, zip(grid.methods, *(_ratios(grid, size, setting) for size in grid.sizes)))
            yield ""


def _tokens(grid: Grid, size: int, setting: Setting) -> Iterator[str]:
    """A column of the table, under the methods' names."""
    found = [grid.at(method, size, setting) for method in grid.methods]
    known = [tokens_per_pass(measured) if measured else None for measured in found]
    best = max((estimate.value for estimate in known if estimate), default=None)
    for estimate in known:
        bold = "**" if estimate and estimate.value == best and len([*filter(None, known)]) > 1 else ""
        yield f"{bold}{_written(estimate)}{bold}" if estimate else _MISSING


def _ratios(grid: Grid, size: int, setting: Setting) -> Iterator[str]:
    reference = grid.at(REFERENCE, size, setting)
    for measured in (grid.at(method, size, setting) for method in grid.methods):
        ratio = paired_ratio(measured, reference) if measured and reference else None
        interval = "" if ratio is None or math.isnan(ratio.low) else f" ({ratio.low:.3f} to {ratio.high:.3f})"
        yield f"{ratio.value:.3f}{interval}" if ratio else _MISSING


def _written(estimate: Estimate) -> str:
    return f"{estimate.value:.2f}" + ("" if math.isnan(estimate.low) else f" ± {estimate.half_width:.2f}")


def draw_figure(grid: Grid, file: Path) -> None:
    """Write tokens per pass against tree size as SVG, a panel for every sampling."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * len(grid.settings), 3.8), layout="constrained")
        panels = figure.subplots(1, len(grid.settings), squeeze=False)[0]
        for panel, setting in zip(panels, grid.settings):
            for method, marker in zip(grid.methods, "os^vD*PX"):
                found = [(size, grid.at(method, size, setting)) for size in sorted(grid.sizes)]
                known = [(size, tokens_per_pass(measured)) for size, measured in found if measured]
                values, spread = [[getattr(e, part) for _, e in known] for part in ("value", "half_width")]
                panel.errorbar([size for size, _ in known], values, spread, label=method, marker=marker, capsize=2)
            panel.set(title=named(setting), xlabel="nodes of a tree", ylabel="tokens per pass")
            panel.set_xscale("log", base=2)
            panel.set_xticks(sorted(grid.sizes), labels=[*map(str, sorted(grid.sizes))])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(file, metadata={"Date": None}, format="svg")
