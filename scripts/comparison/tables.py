"""The tables, in Markdown."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from toolkit.output import table

from comparison.cells import REFERENCE, Cell, Measured, cell, named
from comparison.estimates import Estimate, paired_ratio, tokens_per_pass
from offload_runtime.speculation.acceptance_store import Setting

MISSING = "–"


@dataclass(frozen=True)
class Grid:
    """What there is to show: every method, size and setting, and what was measured so far.

    driver: the method in whose contexts all were measured; None where each wrote its own.
    """

    methods: Sequence[str]
    sizes: Sequence[int]
    depth: int
    settings: Sequence[Setting]
    measured: Mapping[Cell, Measured]
    driver: str | None = None

    def at(self, method: str, size: int, setting: Setting) -> Measured | None:
        return self.measured.get(cell(method, size, self.depth, setting, self.driver))


def row(measured: Measured) -> str:
    """A line for a cell that has just been measured."""
    times = f"; ms of draft + target, and per token: {_milliseconds(measured)}" if measured.timed_passes else ""
    return (
        f"{measured.cell}: {_written(tokens_per_pass(measured))} tokens per pass in {measured.passes} passes of "
        f"{len(measured.replies)} replies{times}"
    )


def heading(setup: Mapping[str, Any], grid: Grid) -> Iterator[str]:
    """What was compared on what, and what the figures mean."""
    drafted_by = f"itself in {setup['draft_bits']} bits" if setup.get("draft_bits") else setup["draft"]
    title = "Expected tokens per pass at the same contexts" if grid.driver else "Tokens per pass"
    yield f"# {title}: {setup['model']}, drafted by {drafted_by}"
    yield ""
    if grid.driver:
        yield _same_contexts(setup, grid.driver)
        if setup.get("near_end") is not None:
            yield f"Only contexts at most {setup['near_end']} tokens before the text's end count."
    else:
        yield (
            f"Replies of {setup['reply_tokens']} tokens, fewer where the text ended; the pass that reaches them counts "
            f"whole, one in which the text ends up to there. Seeds from {setup['seed']}."
        )
    yield ""
    passes = "contexts" if grid.driver else "passes of the target, the first pass of a reply included"
    yield (
        f"Tokens per pass: tokens of all replies over {passes}. ± and "
        f"ranges: 95 %, prompts taken as independent. Trees have at most {grid.depth} levels; a chain no more nodes."
        + (" auto makes as few of the nodes as it takes to be fastest." if "auto" in grid.methods else "")
    )
    yield ""


def _same_contexts(setup: Mapping[str, Any], driver: str) -> str:
    return (
        f"Contexts are the starts of the passes in which `{driver}` writes replies of {setup['reply_tokens']} tokens, "
        f"fewer where the text ended (seeds from {setup['seed']}). Every method drafts there and the target scores its "
        "tree; what counts is how many tokens the method's rule yields from that tree on average over the rule's own "
        "random numbers (at temperature 0, and where nodes are matched: how many it yields), up to the text's end. The "
        "passes of another method by itself start elsewhere, and its tokens per pass differ a "
        "little from these."
    )


def tables(grid: Grid) -> Iterator[str]:
    """Lines of Markdown: for every setting tokens per pass, ratios to the reference, and milliseconds if timed."""
    paired = "context by context" if grid.driver else "replies paired by prompt and seed"
    for setting in grid.settings:
        yield f"## {named(setting).capitalize()}"
        yield ""
        yield "Tokens per pass, the most of every tree size in bold:"
        yield ""
        yield from _table(grid, _best_in_bold(grid, setting))
        if REFERENCE in grid.methods and len(grid.methods) > 1:
            yield f"Ratio to `{REFERENCE}`, {paired}:"
            yield ""
            yield from _table(grid, partial(_ratio, grid, setting))
        if grid.driver is None:
            yield "Milliseconds of draft + target in a pass, and per token (wall time on this machine):"
            yield ""
            yield from _table(grid, partial(_cost, grid, setting))


def _table(grid: Grid, write: Callable[[str, int], str]) -> Iterator[str]:
    rows = ((method, *(write(method, size) for size in grid.sizes)) for method in grid.methods)
    yield from table(["nodes", *map(str, grid.sizes)], rows)
    yield ""


def _best_in_bold(grid: Grid, setting: Setting) -> Callable[[str, int], str]:
    def estimates(size: int) -> dict[str, Estimate]:
        found = {method: grid.at(method, size, setting) for method in grid.methods}
        return {method: tokens_per_pass(measured) for method, measured in found.items() if measured}

    by_size = {size: estimates(size) for size in grid.sizes}

    def write(method: str, size: int) -> str:
        if method not in by_size[size]:
            return MISSING
        estimate = by_size[size][method]
        text = _written(estimate)
        best = max(other.value for other in by_size[size].values())
        return f"**{text}**" if estimate.value == best and len(by_size[size]) > 1 else text

    return write


def _written(estimate: Estimate) -> str:
    return f"{estimate.value:.2f}" + ("" if math.isnan(estimate.low) else f" ± {estimate.half_width:.2f}")


def _ratio(grid: Grid, setting: Setting, method: str, size: int) -> str:
    measured, reference = grid.at(method, size, setting), grid.at(REFERENCE, size, setting)
    estimate = paired_ratio(measured, reference) if measured and reference else None
    if estimate is None:
        return MISSING
    interval = "" if math.isnan(estimate.low) else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{interval}"


def _cost(grid: Grid, setting: Setting, method: str, size: int) -> str:
    measured = grid.at(method, size, setting)
    return _milliseconds(measured) if measured else MISSING


def _milliseconds(measured: Measured) -> str:
    if not measured.timed_passes:
        return MISSING
    seconds = measured.draft_seconds, measured.target_seconds
    draft, target = (1000 * part / measured.timed_passes for part in seconds)
    return f"{draft:.1f} + {target:.1f}, {(draft + target) / tokens_per_pass(measured).value:.2f}"
