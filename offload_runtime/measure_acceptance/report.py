"""The measurement's output: a table of acceptance and one of calibration, or both as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from offload_runtime.measure_acceptance.measure import Measured
from sequoia_tree.acceptance.acceptance import BIN_EDGES, clustered_intervals

CHILDREN_SHOWN = 8
LEGEND = """\
a1, a2, …   share of contexts whose 1st, 2nd, … child is the accepted one, and half the width of its 95 % interval,
            from the spread between prompts (± 1.000: fewer than three prompts)
same        share of contexts where both models' likeliest tokens are the same
1-TV        1 - total variation between the distributions: the chance that a single child is accepted
by m        contexts, and a1 among them, by the draft's largest probability m"""


def lines(measured: Sequence[Measured]) -> Iterator[str]:
    """Both tables and their legend."""
    titles = "".join(f"{f'a{child}':>7}" for child in range(1, CHILDREN_SHOWN + 1))
    yield f"{'temperature':>11} {'top-p':>6} {'contexts':>9} {'same':>6} {'1-TV':>6} {titles}"
    for one in measured:
        yield from _acceptance_lines(one)
    yield ""
    yield f"{'temperature':>11} {'top-p':>6} {'by m':>9} " + "".join(f"{title:>7}" for title in _bin_titles())
    for one in measured:
        yield from _calibration_lines(one)
    yield ""
    yield from LEGEND.splitlines()


def figures(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The same numbers as JSON types, one object per setting."""
    return [
        {
            **asdict(one.setting),
            "contexts": int(one.total.positions),
            "prompts": len(one.prompts),
            "agreement": one.measurement.agreement,
            "one_minus_tv": one.measurement.one_minus_tv,
            "acceptance": one.total.positional().tolist(),
            "interval": clustered_intervals(one.prompts).tolist(),
            "draft_scale": one.total.scale() if one.setting.temperature == 0 else None,
            "calibration": [
                {"m_from": low, "contexts": contexts, "first_child": chance}
                for low, (contexts, chance) in zip((0.0, *BIN_EDGES), _calibration(one))
            ],
        }
        for one in measured
    ]


def _acceptance_lines(one: Measured) -> Iterator[str]:
    values, widths = one.total.positional(), clustered_intervals(one.prompts)
    measurement = one.measurement
    overlap = "-" if measurement.one_minus_tv is None else f"{measurement.one_minus_tv:.3f}"
    start = f"{_setting(one)} {one.total.positions:>9.0f} {measurement.agreement:>6.3f} {overlap:>6} "
    yield start + "".join(f"{value:>7.3f}" for value in values[:CHILDREN_SHOWN])
    yield f"{'±':>{len(start) - 1}} " + "".join(f"{width:>7.3f}" for width in widths[:CHILDREN_SHOWN])


def _calibration_lines(one: Measured) -> Iterator[str]:
    calibration = _calibration(one)
    yield f"{_setting(one)} {'contexts':>9} " + "".join(f"{contexts:>7}" for contexts, _ in calibration)
    chances = ("-" if chance is None else f"{chance:.3f}" for _, chance in calibration)
    yield f"{'':>18} {'a1':>9} " + "".join(f"{chance:>7}" for chance in chances)


def _calibration(one: Measured) -> list[tuple[int, float | None]]:
    """By bin of m: contexts, and the measured acceptance of child 1."""
    counts, credits = one.total.counts[:, 0].tolist(), one.total.credits[:, 0].tolist()
    return [(int(n), credit / n if n else None) for n, credit in zip(counts, credits)]


def _bin_titles() -> list[str]:
    return [f"<{edge:g}" for edge in BIN_EDGES] + [f"≥{BIN_EDGES[-1]:g}"]


def _setting(one: Measured) -> str:
    top_p = f"{one.setting.top_p:g}" if one.setting.top_p < 1 else "-"
    return f"{one.setting.temperature:>11g} {top_p:>6}"
