"""When steps leave: at once where passes are slow, together where they are quick, and none of a reply given whole."""

import json
from collections.abc import Iterator

import pytest

from offload_runtime.serve import generation, job
from offload_runtime.serve.http.answers import EventStream
from tests.fakes.served import Served, wait_until
from tests.fakes.shared_runtime import SharedRuntime, answer_to
from tests.offload_runtime.serve.test_life_of_a_request import Asking, holding, let_one_pass

PROMPT = "once upon a time there was a king who had three sons and no daughter"
NEVER = 1000.0  # seconds; a test that waited for it would fail


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is sent, piece by piece."""
    pieces: list[bytes] = []
    send = EventStream.send

    async def noting(stream: EventStream, content: bytes) -> None:
        pieces.append(content)
        await send(stream, content)

    monkeypatch.setattr(EventStream, "send", noting)
    return pieces


def texts(frames: Iterator[str]) -> Iterator[str]:
    """The text of each step."""
    for frame in frames:
        choices = json.loads(frame.removeprefix("data: "))["choices"] if frame.startswith("data: {") else []
        yield from (text for one in choices if (text := one["delta"].get("content")))


def test_steps_of_slow_passes_leave_at_once() -> None:
    with (
        Served(SharedRuntime(parallel=1)) as served,
        holding(served.runtime),
        served.stream_chat(PROMPT) as stream,
    ):
        steps, read = texts(stream.frames()), ""
        for _ in range(5):  # the next pass begins after the step of this one has been read
            let_one_pass(served)
            read += next(steps)
        assert answer_to(PROMPT).startswith(read)


def test_steps_of_quick_passes_leave_together(monkeypatch: pytest.MonkeyPatch, sent: list[bytes]) -> None:
    monkeypatch.setattr(job, "PACE", NEVER)
    with Served(SharedRuntime(parallel=1)) as served:
        with holding(served.runtime), served.stream_chat(PROMPT) as stream:
            steps = texts(stream.frames())
            let_one_pass(served)
            first = next(steps)  # the first step does not wait
            let_one_pass(served)
            let_one_pass(served)
            served.runtime.held.clear()
            rest = [*steps]  # nor does the last
        assert first + "".join(rest) == answer_to(PROMPT)
        opening, alone, together, closing = sent
        assert b'"role":"assistant"' in opening and closing.endswith(b"[DONE]\n\n")
        assert alone.count(b"data: ") == 1 and together.count(b"data: ") == len(rest) + 1 > 3


def test_an_error_comes_after_the_steps_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered: list[object] = []
    deliver = job.Job._deliver
    monkeypatch.setattr(job, "PACE", NEVER)
    monkeypatch.setattr(job.Job, "_deliver", lambda self, *event: (deliver(self, *event), delivered.append(event))[0])
    with (
        Served(SharedRuntime(parallel=1)) as served,
        holding(served.runtime),
        served.stream_chat(PROMPT) as stream,
    ):
        frames = stream.frames()
        let_one_pass(served)
        next(texts(frames))
        let_one_pass(served)
        wait_until(lambda: len(delivered) == 2)
        served.engine.cut()
        step, error, done = [frame for frame in frames if not frame.startswith(":")]
    assert "content" in step and "stopping" in error and done == "data: [DONE]"


def test_a_reply_given_whole_wakes_nobody_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    wake = job.Job._wake
    monkeypatch.setattr(generation, "QUIET", NEVER)
    monkeypatch.setattr(job.Job, "_wake", lambda self: (woken.append(1), wake(self))[1])
    with Served(SharedRuntime(parallel=1)) as served, holding(served.runtime):
        whole = Asking(served, PROMPT)
        for _ in range(4):
            let_one_pass(served)
        assert not woken
        served.runtime.held.clear()
        assert whole.text == answer_to(PROMPT)
        assert len(woken) == 1
