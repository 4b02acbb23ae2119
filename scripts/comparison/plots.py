"""The figure: tokens per pass against tree size, a panel for every sampling (as in Sequoia, arXiv 2402.12374)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from comparison.cells import named
from comparison.estimates import tokens_per_pass
from comparison.tables import Grid
from offload_runtime.errors import UsageError
from offload_runtime.speculation.acceptance_store import Setting

_PANEL_INCHES = (4.2, 3.2)
_LEGEND_INCHES = 0.6
_MOST_COLUMNS = 3
_MARKERS = "os^vD*PXh<"
# Text stays text, and the same figures give the same bytes.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sequoia-offload", "font.size": 9.0}


def check_matplotlib() -> None:
    """Raises UsageError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot: figures need matplotlib, which is not installed: pip install matplotlib")


def draw_figure(grid: Grid, file: Path) -> None:
    """Write it as SVG. Raises UsageError where the file cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(grid.settings), _MOST_COLUMNS)
    rows = -(-len(grid.settings) // columns)
    width, height = _PANEL_INCHES
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows + _LEGEND_INCHES), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, setting in zip(places, grid.settings):
            _draw_panel(grid, setting, place)
        for place in places[len(grid.settings) :]:
            place.set_axis_off()
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        try:
            figure.savefig(file, metadata={"Date": None}, format="svg")
        except OSError as error:
            raise UsageError(f"--plot {file}: cannot be written ({error.strerror})") from error


def _draw_panel(grid: Grid, setting: Setting, place: Any) -> None:
    sizes = sorted(grid.sizes)
    for method, marker in zip(grid.methods, _MARKERS):
        found = [(size, grid.at(method, size, setting)) for size in sizes]
        known = [(size, tokens_per_pass(measured)) for size, measured in found if measured is not None]
        xs, values = [size for size, _ in known], [estimate.value for _, estimate in known]
        spread = [estimate.half_width for _, estimate in known]
        place.errorbar(xs, values, spread, label=method, marker=marker, markersize=4, linewidth=1.2, capsize=2)
    place.set_title(named(setting))
    place.set_xlabel("nodes of a tree")
    place.set_ylabel("tokens per pass")
    place.grid(alpha=0.3)
    place.set_xscale("log", base=2)
    place.set_xticks(sizes, labels=[str(size) for size in sizes])
    place.minorticks_off()
