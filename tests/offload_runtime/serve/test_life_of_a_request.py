"""The queue and its bound, clients that leave, comments in between, and the order in which a server stops."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from offload_runtime.serve import generation
from offload_runtime.serve.errors import ApiError
from tests.fakes.served import Served, Stream, wait_until
from tests.fakes.shared_runtime import SharedRuntime, answer_to

PROMPT = "once upon a time there was"


@contextmanager
def holding(runtime: SharedRuntime) -> Iterator[None]:
    """Passes stay between two layers in the block."""
    runtime.held.set()
    try:
        yield
    finally:
        runtime.held.clear()


def let_one_pass(served: Served) -> None:
    """Texts join and leave between passes: let the held one end."""
    passes = served.runtime.passes
    served.runtime.let = 1
    wait_until(lambda: served.runtime.passes > passes)


def content(stream: Stream) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream.data())


class Asking(threading.Thread):
    """A request in a thread; `answer` is there after `join`."""

    def __init__(self, served: Served, text: str, **more: object):
        super().__init__()
        self._ask = lambda: served.chat(text, **more)
        self.start()

    def run(self) -> None:
        self.answer = self._ask()

    @property
    def text(self) -> str:
        self.join()
        return self.answer.json["choices"][0]["message"]["content"]


def test_texts_share_passes_and_the_others_wait() -> None:
    with Served(SharedRuntime(parallel=2), queue=3) as served, holding(served.runtime):
        asking = [Asking(served, f"{PROMPT} 0")]
        wait_until(lambda: served.engine.running == 1)
        asking += [Asking(served, f"{PROMPT} {number}") for number in range(1, 5)]
        wait_until(lambda: (served.engine.running, served.engine.waiting) == (1, 4))
        let_one_pass(served)
        wait_until(lambda: (served.engine.running, served.engine.waiting) == (2, 3))
        assert served.get("/health").json["waiting"] == 3
        full = served.chat("x")
        assert (full.status, full.error["code"]) == (503, "queue_full")
        assert 1 <= int(full.headers["retry-after"]) <= 60 and "try again in" in full.error["message"]
        assert served.chat("x", n=2, stream=True).status == 503
        served.runtime.held.clear()
        assert [one.text for one in asking] == [answer_to(f"{PROMPT} {number}") for number in range(5)]
        assert served.runtime.most == 2
        assert served.chat("x").status == 200
        busy = [line for line in served.get("/metrics").body.decode().splitlines() if 'outcome="busy"' in line]
        assert busy[0].endswith(" 2.0")


def test_texts_are_taken_in_the_order_they_came() -> None:
    with Served(SharedRuntime(parallel=1), queue=8) as served:
        order: list[str] = []
        with holding(served.runtime):
            asking = []
            for number in range(4):
                asking.append(Asking(served, f"text {number}", max_tokens=2))
                wait_until(lambda: served.engine.running + served.engine.waiting == len(asking))
        begun = [request.prompt[-1]["content"] for request in served.runtime.asked]
        for one in asking:
            one.join()
            order.append(one.answer.json["id"])
        assert begun == [f"text {number}" for number in range(4)] and len({*order}) == 4


def test_no_request_has_more_texts_than_there_are_places() -> None:
    with Served(SharedRuntime(parallel=2), queue=1) as served:
        assert served.chat("x", n=3).status == 200
        assert "from 1 to 3" in served.chat("x", n=4).error["message"]


def test_a_client_that_leaves_frees_its_place_within_a_layer() -> None:
    with Served(SharedRuntime(parallel=1), queue=0) as served, holding(served.runtime):
        stream = served.stream_chat(PROMPT)
        wait_until(lambda: served.engine.running == 1)
        assert served.chat("x").status == 503
        stream.close()
        wait_until(lambda: served.engine.running == 0)  # although the pass is held between two layers
        other = Asking(served, PROMPT)
        wait_until(lambda: served.engine.running == 1)
        served.runtime.held.clear()
        assert other.text == answer_to(PROMPT)
        left = [line for line in served.get("/metrics").body.decode().splitlines() if 'outcome="left"' in line]
        assert left[0].endswith(" 1.0")


def test_a_client_that_leaves_does_not_hold_the_others_up() -> None:
    with Served(SharedRuntime(parallel=3), queue=0) as served, holding(served.runtime):
        leaving = served.stream_chat(PROMPT)
        wait_until(lambda: served.engine.running == 1)
        staying = served.stream_chat(f"{PROMPT} 1")
        whole = Asking(served, f"{PROMPT} 2")
        wait_until(lambda: served.engine.places == 3 and served.engine.waiting == 2)
        let_one_pass(served)
        wait_until(lambda: served.engine.running == 3)
        leaving.close()
        wait_until(lambda: served.service.engine.places == 2)  # counts as free at once, in mid-pass
        late = Asking(served, f"{PROMPT} 3")
        wait_until(lambda: served.engine.waiting == 1)
        served.runtime.held.clear()
        assert content(staying) == answer_to(f"{PROMPT} 1")
        assert whole.text == answer_to(f"{PROMPT} 2") and late.text == answer_to(f"{PROMPT} 3")
        staying.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_clients_that_leave_the_queue_are_forgotten(streamed: bool) -> None:
    with Served(SharedRuntime(parallel=1), queue=2) as served, holding(served.runtime):
        first = Asking(served, PROMPT)
        wait_until(lambda: served.engine.running == 1)
        for _ in range(5):
            waiting = served.stream_chat("x", n=2) if streamed else served.ask_only("x", n=2)
            wait_until(lambda: served.engine.waiting == 2)
            waiting.close()
            wait_until(lambda: served.engine.waiting == 0)
        assert served.runtime.passes <= 1
        served.runtime.held.clear()
        assert first.text == answer_to(PROMPT)


def test_comments_come_while_a_pass_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "QUIET", 0.02)
    with Served(SharedRuntime(parallel=1), queue=1) as served, holding(served.runtime):
        with served.stream_chat(PROMPT) as running, served.stream_chat(PROMPT) as waiting:
            for stream in (running, waiting):
                frames = stream.frames()
                assert '"role":"assistant"' in next(frames)  # before the first pass is done
                assert [next(frames) for _ in range(3)] == [": keep-alive"] * 3
        with served.stream("/v1/completions", {"prompt": PROMPT}) as stream:
            assert next(stream.frames()) == ": keep-alive"


def test_a_bad_request_is_answered_while_all_places_are_taken() -> None:
    with Served(SharedRuntime(parallel=1), queue=1) as served, holding(served.runtime):
        first = Asking(served, PROMPT)
        wait_until(lambda: served.engine.running == 1)
        for _ in range(3):
            assert served.chat("word " * 5000).status == 400
        assert served.engine.places == 1
        served.runtime.held.clear()
        first.join()


def test_a_server_that_stops_finishes_what_it_writes_and_refuses_the_rest() -> None:
    with (
        Served(SharedRuntime(parallel=1), queue=1) as served,
        holding(served.runtime),
        served.stream_chat(PROMPT) as running,
        served.stream_chat(PROMPT) as waiting,
    ):
        wait_until(lambda: served.engine.waiting == 1)
        served.engine.stop()
        *_, last = waiting.data()
        assert last["error"]["code"] == "stopping"
        refused = served.chat("x")
        assert (refused.status, refused.error["code"]) == (503, "stopping") and refused.headers["retry-after"]
        assert served.get("/health").status == 503
        served.runtime.held.clear()
        assert content(running) == answer_to(PROMPT)


def test_replies_that_are_cut_end_with_an_error() -> None:
    with Served(SharedRuntime(parallel=2), queue=1) as served, holding(served.runtime):
        whole = Asking(served, PROMPT)
        wait_until(lambda: served.engine.running == 1)
        with served.stream_chat(PROMPT) as stream:
            wait_until(lambda: served.engine.waiting == 1)
            let_one_pass(served)
            wait_until(lambda: served.engine.running == 2)
            served.engine.cut()
            *_, last = stream.data()
        whole.join()
        assert last["error"]["code"] == "stopping" and whole.answer.status == 503
        served.engine.join()
        with pytest.raises(ApiError, match="stopping"):
            served.engine.let_in([print])


def test_no_thread_is_left() -> None:
    before = {thread.ident for thread in threading.enumerate()}
    with Served(SharedRuntime()) as served:
        assert served.chat(PROMPT).status == 200
        assert len({thread.ident for thread in threading.enumerate()} - before) == 3
    assert {thread.ident for thread in threading.enumerate()} <= before
