"""Figures: tokens per pass against tree size, and against temperature and top-p (as in Sequoia, arXiv 2402.12374)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_AXES = {"nodes": "nodes of a tree", "temperature": "temperature", "top_p": "top-p"}


@dataclass(frozen=True)
class Panel:
    """One place of a figure. points: what stands on the x axis, as tree size and setting."""

    title: str
    axis: str
    points: Sequence[tuple[int, Setting]]

    def x(self, size: int, setting: Setting) -> float:
        return size if self.axis == "nodes" else getattr(setting, self.axis)


def check_matplotlib() -> None:
    """Raises UsageError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plots: figures need matplotlib, which is not installed: pip install matplotlib")


def draw_figures(grid: Grid, directory: Path, size: int | None) -> list[Path]:
    """Write what can be drawn of the grid as SVG files; `size` is that of the figures over temperature and top-p.

    Without one it is the largest. Raises UsageError where the directory cannot be written.
    """
    size = size or max(grid.sizes)
    figures = {
        "tokens-by-size": list(_over_size(grid)),
        "tokens-by-temperature": list(_over(grid, size, "temperature", "top_p")),
        "tokens-by-top-p": list(_over(grid, size, "top_p", "temperature")),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_draw(grid, panels, directory / f"{name}.svg") for name, panels in figures.items() if panels]
    except OSError as error:
        raise UsageError(f"--plots {directory}: cannot be written ({error.strerror})") from error


def _over_size(grid: Grid) -> Iterator[Panel]:
    if len(grid.sizes) > 1:
        for setting in grid.settings:
            yield Panel(named(setting), "nodes", [(size, setting) for size in sorted(grid.sizes)])


def _over(grid: Grid, size: int, axis: str, fixed: str) -> Iterator[Panel]:
    """Over one value of the sampling, a panel for every value of the other."""
    for value in sorted({getattr(setting, fixed) for setting in grid.settings}):
        along = [setting for setting in grid.settings if getattr(setting, fixed) == value]
        if len(along) > 1:
            along.sort(key=lambda setting: getattr(setting, axis))
            title = f"{size} nodes, {_AXES[fixed]} {value:g}"
            yield Panel(title, axis, [(size, setting) for setting in along])


def _draw(grid: Grid, panels: Sequence[Panel], file: Path) -> Path:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows + _LEGEND_INCHES), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, panel in zip(places, panels):
            _draw_panel(grid, panel, place)
        for place in places[len(panels) :]:
            place.set_axis_off()
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(file, metadata={"Date": None})
    return file


def _draw_panel(grid: Grid, panel: Panel, place: Any) -> None:
    for method, marker in zip(grid.methods, _MARKERS):
        found = [(panel.x(size, setting), grid.at(method, size, setting)) for size, setting in panel.points]
        known = [(x, tokens_per_pass(measured)) for x, measured in found if measured is not None]
        xs, values = [x for x, _ in known], [estimate.value for _, estimate in known]
        spread = [estimate.half_width for _, estimate in known]
        place.errorbar(xs, values, spread, label=method, marker=marker, markersize=4, linewidth=1.2, capsize=2)
    place.set_title(panel.title)
    place.set_xlabel(_AXES[panel.axis])
    place.set_ylabel("tokens per pass")
    place.grid(alpha=0.3)
    if panel.axis == "nodes":
        sizes = [size for size, _ in panel.points]
        place.set_xscale("log", base=2)
        place.set_xticks(sizes, labels=[str(size) for size in sizes])
        place.minorticks_off()
