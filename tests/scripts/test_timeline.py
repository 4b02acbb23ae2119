"""Timelines: what they measure lies in the order of the ring, idle shares are those of the spans, pictures are safe."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_latency  # noqa: E402
from latency import timeline  # noqa: E402
from latency.timeline import (  # noqa: E402
    DEVICE,
    DRAFTING,
    LINK,
    VERIFYING,
    Recorder,
    Span,
    Timeline,
    drawn,
    record_steps,
)

from tests.samples.tiny_models import PROMPT, checkpoint, perturbed, streaming_runtime  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def test_layers_cross_the_link_before_they_are_computed_and_nothing_is_left_behind():
    model = checkpoint("llama", num_hidden_layers=5)
    options = {"tree": "sequoia", "tree_size": 6, "tree_depth": 3, "dtype": "float32", "context_length": 96}
    with streaming_runtime(model, perturbed(model, 0.2), **options) as runtime:
        target = runtime.target_model
        hooks = [len(module._forward_hooks) for module in target.layer_modules]
        asked = {"prompt": PROMPT, "max_new_tokens": 40, "temperature": 0}
        recorded = record_steps(runtime, asked)
        assert [len(module._forward_hooks) for module in target.layer_modules] == hooks
        assert target._weights.ring.on_filled is None
        expected = runtime.generate(**asked).token_ids
    computed, drafting = recorded.lane(DEVICE), recorded.lane(DRAFTING)
    assert [span.name for span in computed] == [f"layer {n}" for n in range(5)] * timeline.STEPS
    assert len(drafting) == len(recorded.lane(VERIFYING)) == timeline.STEPS
    for span in computed[2:]:  # two slots may have been filled before the first step ended
        crossed = [one.end for one in recorded.lane(LINK) if one.name == span.name and one.end <= span.begin]
        assert crossed, f"{span.name} was computed before it had come"
    for one, drafted in enumerate(drafting):
        assert drafted.end <= computed[5 * one].begin and computed[5 * one + 4].end <= recorded.lane(VERIFYING)[one].end
    assert all(recorded.begin <= span.begin < span.end <= recorded.end for span in recorded.spans)
    assert 0 <= recorded.link_idle < 1 and 0 <= recorded.device_idle < 1 and len(expected) == 40


def test_a_reply_of_one_step_has_none():
    with streaming_runtime(checkpoint("llama"), dtype="float32", context_length=64) as runtime:
        assert record_steps(runtime, {"prompt": PROMPT, "max_new_tokens": 1, "temperature": 0}) is None


def line(*spans: tuple[str, float, float]) -> Timeline:
    return Timeline(1.0, 5.0, tuple(Span(lane, "x", begin, end) for lane, begin, end in spans))


@pytest.mark.parametrize(
    ("spans", "link", "device"),
    [
        ((), 1.0, 1.0),
        (((LINK, 1, 3), (DEVICE, 3, 5)), 0.5, 0.5),
        (((LINK, 1, 3), (LINK, 2, 4), (LINK, 2, 3)), 0.25, 1.0),
        (((DRAFTING, 1, 2), (DEVICE, 1.5, 3), (VERIFYING, 3, 3.5), (LINK, 1, 5)), 0.0, 0.375),
    ],
)
def test_what_overlaps_is_counted_once(spans, link, device):
    one = line(*spans)
    assert (one.link_idle, one.device_idle) == pytest.approx((link, device))


def test_verifying_begins_where_the_last_layer_ends():
    def step(drafted: int, draft: float, target: float) -> SimpleNamespace:
        return SimpleNamespace(drafted=drafted, draft_seconds=draft, target_seconds=target, token_ids=[1, 2])

    spans = [(DEVICE, "layer 0", lambda: 12.0, lambda: 13.0), (DEVICE, "layer 1", lambda: 13.0, lambda: 13.5)]
    steps = [(step(0, 0, 1), 10.0), (step(7, 1.5, 2.5), 14.0)]
    made = Recorder(spans, steps).timeline()
    assert (made.begin, made.end) == (10.0, 14.0)
    assert made.lane(DRAFTING) == [Span(DRAFTING, "7 tokens", 10.0, 11.5)]
    assert made.lane(VERIFYING) == [Span(VERIFYING, "2 new tokens", 13.5, 14.0)]


def test_a_picture_shows_every_span_and_escapes_what_it_is_told():
    spans = ((LINK, 1, 2), (DEVICE, 2, 3), (DRAFTING, 3, 4), (VERIFYING, 4, 5))
    told = '<script>alert("a&b")</script>\x1b[31m\u202e'
    picture = drawn(Timeline(1.0, 5.0, tuple(Span(lane, told[:8], *times) for lane, *times in spans)), told)
    assert "<script" not in picture and "\x1b" not in picture and "\u202e" not in picture
    root = ET.fromstring(picture)
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    lefts, widths = ([float(bar.get(name)) for bar in bars] for name in ("x", "width"))
    assert len(bars) == 4 and lefts == sorted(lefts) and max(widths) - min(widths) < 0.02
    assert len({bar.get("y") for bar in bars}) == 4
    assert any(text.text.startswith("<script>") for text in root.iter(f"{SVG}text"))


QUICK = ["--repeats", "1", "--new-tokens", "8", "--tree-size", "6", "--quiet", "--device", "cpu"]


def test_the_benchmark_draws_the_last_mode(tmp_path, capsys):
    file, lines = tmp_path / "new" / "timeline.svg", tmp_path / "lines"
    model = checkpoint("llama")
    pair = ["--model", str(model), "--draft", str(perturbed(model, 0.2))]
    assert benchmark_latency.main([*QUICK, *pair, "--timeline", str(file), "--json", str(lines)]) == 0
    assert ET.parse(file).getroot().tag == f"{SVG}svg" and [*file.parent.iterdir()] == [file]
    out = capsys.readouterr().out
    assert f"tree: timeline in {file}: " in out and "link idle " in out
    plain, tree = (one for one in lines.read_text().splitlines() if '"record": "mode"' in one)
    assert '"link_idle": null' in plain and '"link_idle": null' not in tree


def test_a_picture_that_cannot_be_written_is_told_in_a_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ["--shape", "tiny", "--timeline", str(blocked / "timeline.svg")]
    assert benchmark_latency.main([*QUICK, *arguments]) == 1
    assert str(blocked) in capsys.readouterr().err


def test_on_a_gpu_times_are_those_of_its_events(monkeypatch):
    """Not those of the host, which queues work ahead."""
    device_clock = iter([100.0, 250.0])  # milliseconds

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(device_clock)

        def synchronize(self): ...

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(timeline.time, "perf_counter", lambda: 7.0)
    assert timeline._clock(torch.device("cuda"))()() == pytest.approx(7.15)
