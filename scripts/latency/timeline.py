"""When the link, the device, drafting and verification work during a few steps of decoding, by measured times, as SVG.

Nothing is recorded but in the block of `recording`: layers have hooks there, and the ring's thread says when it fills.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from toolkit.output import seconds

from offload_runtime.generation.decode import Step
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.model.model import Model

STEPS = 4  # after the first, which reads the prompt
LINK, DEVICE, DRAFTING, VERIFYING = "link", "device", "drafting", "verifying"
COLOURS = {LINK: "#2b6cb0", DEVICE: "#2f855a", DRAFTING: "#b7791f", VERIFYING: "#805ad5"}
WIDTH, LEFT, TOP, ROW, BAR, TICKS = 1200, 90, 60, 34, 22, 8
When = Callable[[], float]
"""Gives the time of a point in the device's work, by `time.perf_counter`, once that work is done."""


@dataclass(frozen=True)
class Span:
    """Work of one lane. name: a layer's number, or what was done."""

    lane: str
    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Spans between `begin` and `end`, in seconds."""

    begin: float
    end: float
    spans: tuple[Span, ...]

    def lane(self, lane: str) -> list[Span]:
        return [span for span in self.spans if span.lane == lane]

    @property
    def link_idle(self) -> float:
        """The share of the time in which nothing crosses the link."""
        return self._idle((LINK,))

    @property
    def device_idle(self) -> float:
        """The share in which the device neither computes layers nor drafts nor verifies."""
        return self._idle((DEVICE, DRAFTING, VERIFYING))

    @property
    def summary(self) -> str:
        idle = f"link idle {self.link_idle:.0%}, device idle {self.device_idle:.0%}"
        return f"{seconds(self.end - self.begin)} s by measured times; {idle}"

    def _idle(self, lanes: tuple[str, ...]) -> float:
        busy, until = 0.0, self.begin
        for span in sorted((span for span in self.spans if span.lane in lanes), key=lambda span: span.begin):
            busy += max(0.0, span.end - max(span.begin, until))
            until = max(until, span.end)
        return 1 - busy / (self.end - self.begin)


@dataclass
class Recorder:
    """Collects spans while the target runs; `steps` are those of the decode loop, with their ends."""

    spans: list[tuple[str, str, When, When]] = field(default_factory=list)
    steps: list[tuple[Step, float]] = field(default_factory=list)

    def timeline(self) -> Timeline:
        """From the end of the first step to that of the last; at least two must have been made."""
        begin, end = self.steps[0][1], self.steps[-1][1]
        spans = [Span(lane, name, first(), last()) for lane, name, first, last in self.spans]
        for step, ended in self.steps[1:]:
            passing = ended - step.target_seconds
            if step.drafted:
                spans.append(Span(DRAFTING, f"{step.drafted} tokens", passing - step.draft_seconds, passing))
            computed = max((s.end for s in spans if s.lane == DEVICE and passing <= s.end <= ended), default=passing)
            spans.append(Span(VERIFYING, f"{len(step.token_ids)} new tokens", computed, ended))
        cut = (Span(s.lane, s.name, max(s.begin, begin), min(s.end, end)) for s in spans)
        return Timeline(begin, end, tuple(sorted((s for s in cut if s.end > s.begin), key=lambda s: s.begin)))


def record_steps(runtime: OffloadRuntime, arguments: Mapping[str, Any], steps: int = STEPS) -> Timeline | None:
    """The timeline of a reply's first steps after the one that reads the prompt; None if it has no other.

    arguments: of `OffloadRuntime.stream`.
    """
    runtime.forget()
    recorder = Recorder()
    with recording(recorder, runtime.target_model):
        for step in runtime.stream(**arguments):
            recorder.steps.append((step, time.perf_counter()))
            if len(recorder.steps) > steps:
                break
    return recorder.timeline() if len(recorder.steps) > 1 else None


@contextmanager
def recording(recorder: Recorder, model: Model) -> Iterator[None]:
    """Within the block, the model's layers and fills are recorded."""
    now = _clock(model.device)
    begun: dict[int, When] = {}

    def began(number: int) -> None:
        begun[number] = now()

    def ended(number: int) -> None:
        recorder.spans.append((DEVICE, f"layer {number}", begun[number], now()))

    def filled(number: int, begin: float, end: float) -> None:
        recorder.spans.append((LINK, f"layer {number}", lambda: begin, lambda: end))

    with ExitStack() as hooks:
        for number, module in enumerate(model.layer_modules):
            # after the model's own hooks, which wait for the weights
            before = module.register_forward_pre_hook(lambda module, args, number=number: began(number))
            after = module.register_forward_hook(lambda module, args, output, number=number: ended(number))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        with model.watched(filled):
            yield


def _clock(device: torch.device) -> Callable[[], When]:
    """Marks the work given to the device so far."""
    if device.type != "cuda":

        def on_host() -> When:
            moment = time.perf_counter()
            return lambda: moment

        return on_host
    first = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    started = time.perf_counter()

    def on_device() -> When:
        event = torch.cuda.Event(enable_timing=True)
        event.record()

        def when() -> float:
            event.synchronize()
            milliseconds: float = first.elapsed_time(event)
            return started + milliseconds / 1e3

        return when

    return on_device


def drawn(timeline: Timeline, title: str) -> str:
    """The picture as SVG: a row for each lane, a bar for each span, its times in the bar's title.

    `title` may hold anything.
    """
    bottom, length = TOP + len(COLOURS) * ROW, timeline.end - timeline.begin

    def at(moment: float) -> float:
        return LEFT + (WIDTH - LEFT - 30) * (moment - timeline.begin) / length

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{bottom + 40}" fill="white"/>',
        _text(8, 22, title),
        _text(8, 42, timeline.summary),
    ]
    for row, (lane, colour) in enumerate(COLOURS.items()):
        top = TOP + row * ROW
        lines.append(_text(8, top + BAR - 6, lane))
        for span in timeline.lane(lane):
            times = f"{seconds(span.begin - timeline.begin)} to {seconds(span.end - timeline.begin)} s"
            width = max(at(span.end) - at(span.begin), 0.2)
            lines.append(
                f'<rect x="{at(span.begin):.2f}" y="{top}" width="{width:.2f}" height="{BAR}" fill="{colour}">'
                f"<title>{_shown(span.name)}: {times}</title></rect>"
            )
    for tick in range(TICKS + 1):
        x = at(timeline.begin + length * tick / TICKS)
        lines.append(f'<line x1="{x:.2f}" y1="{TOP}" x2="{x:.2f}" y2="{bottom}" stroke="#ccc" stroke-width="0.5"/>')
        lines.append(_text(x - 14, bottom + 18, f"{seconds(length * tick / TICKS)} s"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}">{_shown(text)}</text>'


def _shown(text: str) -> str:
    """Without what SVG or terminals would act on."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))
