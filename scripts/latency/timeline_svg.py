"""A timeline as an SVG picture: a row for each lane, a bar for each span, its times in the bar's title."""

from collections.abc import Iterator
from html import escape

from toolkit.output import seconds

from latency.timeline import LANES, Span, Timeline

WIDTH, LEFT, TOP, ROW, BAR, TICKS = 1200, 90, 60, 34, 22, 8
COLOURS = {"link": "#2b6cb0", "device": "#2f855a", "drafting": "#b7791f", "verifying": "#805ad5"}


def drawn(timeline: Timeline, title: str) -> str:
    """The picture, as text of an SVG file; `title` may hold anything."""
    return "\n".join(_lines(timeline, title)) + "\n"


def _lines(timeline: Timeline, title: str) -> Iterator[str]:
    height = TOP + len(LANES) * ROW + 40
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">'
    )
    yield f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    yield _text(8, 22, title)
    idle = f"link idle {timeline.link_idle:.0%}, device idle {timeline.device_idle:.0%}"
    yield _text(8, 42, f"{seconds(timeline.end - timeline.begin)} s by measured times; {idle}")
    for row, lane in enumerate(LANES):
        top = TOP + row * ROW
        yield _text(8, top + BAR - 6, lane)
        yield from (_bar(span, timeline, top) for span in timeline.lane(lane))
    yield from _axis(timeline, TOP + len(LANES) * ROW)
    yield "</svg>"


def _bar(span: Span, timeline: Timeline, top: int) -> str:
    left, right = (_at(moment, timeline) for moment in (span.begin, span.end))
    times = f"{seconds(span.begin - timeline.begin)} to {seconds(span.end - timeline.begin)} s"
    place = f'x="{left:.2f}" y="{top}" width="{max(right - left, 0.2):.2f}" height="{BAR}"'
    looks = f'fill="{COLOURS[span.lane]}" stroke="white" stroke-width="0.3"'
    return f"<rect {place} {looks}><title>{escape(span.name)}: {times}</title></rect>"


def _axis(timeline: Timeline, top: int) -> Iterator[str]:
    length = timeline.end - timeline.begin
    for tick in range(TICKS + 1):
        moment = timeline.begin + length * tick / TICKS
        x = _at(moment, timeline)
        yield f'<line x1="{x:.2f}" y1="{TOP}" x2="{x:.2f}" y2="{top}" stroke="#ccc" stroke-width="0.5"/>'
        yield _text(x - 14, top + 18, f"{seconds(length * tick / TICKS)} s")


def _at(moment: float, timeline: Timeline) -> float:
    return LEFT + (WIDTH - LEFT - 30) * (moment - timeline.begin) / (timeline.end - timeline.begin)


def _text(x: float, y: float, text: str) -> str:
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return f'<text x="{x:.1f}" y="{y}">{escape(shown)}</text>'
