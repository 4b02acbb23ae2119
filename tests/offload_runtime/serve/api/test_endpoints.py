"""What every endpoint answers, over HTTP: replies, streams, figures, and errors in OpenAI's form."""

from collections.abc import Iterator

import pytest

from offload_runtime.errors import ModelFilesError
from tests.fakes.served import Served, wait_until
from tests.fakes.shared_runtime import SharedRuntime, answer_to

PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(SharedRuntime()) as one:
        yield one


def test_health_and_models(served: Served) -> None:
    health = served.get("/health")
    assert (health.status, health.json) == (200, {"status": "ok", "running": 0, "waiting": 0, "parallel": 2})
    (model,) = served.get("/v1/models").json["data"]
    assert (model["id"], model["object"], model["context_length"]) == ("tiny", "model", 4096)
    assert served.get("/v1/models/tiny").json == model
    assert served.get("/v1/models/org/name").json["id"] == "org/name"


def test_the_page_and_its_plan(served: Served) -> None:
    page = served.get("/")
    assert page.status == 200 and b"<html" in page.body and "content-security-policy" in page.headers
    assert served.get("/page/main.js").status == 200
    plan = served.get("/v1/sequoia/plan").json
    assert plan["context_length"] == 4096 and plan["sampling"]["top_p"] == 0.9
    activity = {"running": 0, "waiting": 0, "parallel": served.runtime.parallel, "pass": None}
    assert served.get("/v1/sequoia/activity").json == activity


def test_a_reply_at_once(served: Served) -> None:
    answer = served.chat(PROMPT, max_tokens=1000, seed=3)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    (choice,) = answer.json["choices"]
    assert choice["message"]["content"] == answer_to(PROMPT) and choice["finish_reason"] == "stop"
    usage = answer.json["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert served.chat(PROMPT, max_tokens=1).json["choices"][0]["finish_reason"] == "length"
    assert served.chat(PROMPT, stop="ec").json["choices"][0]["message"]["content"] == "é"


def test_arguments_reach_the_runtime(served: Served) -> None:
    wanted = {"temperature": 0.5, "top_k": 3, "seed": 4, "presence_penalty": 1, "logit_bias": {"5": 1}, "stop": ["qq"]}
    served.chat(PROMPT, **wanted, max_tokens=9, user="me")
    asked = served.runtime.asked[-1]
    assert asked.prompt == [{"role": "user", "content": PROMPT}]
    arguments = dict(asked.arguments)
    assert callable(arguments.pop("should_stop"))
    assert arguments == {**wanted, "logit_bias": {5: 1.0}, "stop": ("qq",), "max_new_tokens": 9}


def test_a_stream(served: Served) -> None:
    with served.stream_chat(PROMPT, stream_options={"include_usage": True}, n=2) as stream:
        assert stream.response.getheader("content-type") == "text/event-stream; charset=utf-8"
        chunks = list(stream.data())
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] += choice["finish_reason"] or ""
    assert texts == [answer_to(PROMPT)] * 2 and reasons == ["stop"] * 2
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 10
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_completions_of_several_prompts(served: Served) -> None:
    body = {"prompt": ["a b", "c"], "n": 2, "logprobs": 1}
    choices = served.post("/v1/completions", body).json["choices"]
    assert [choice["text"] for choice in choices] == [answer_to(prompt) for prompt in ("a b", "a b", "c", "c")]
    assert all(len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"]) for choice in choices)
    with served.stream("/v1/completions", {"prompt": "c"}) as stream:
        chunks = list(stream.data())
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer_to("c")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_figures(served: Served) -> None:
    def figure(name: str) -> float:
        lines = [line for line in served.get("/metrics").body.decode().splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[1]) if lines else 0.0

    names = (
        *("sequoia_tokens_total", "sequoia_pass_seconds_count", "sequoia_streamed_bytes_total"),
        *("sequoia_prompt_tokens_total", "sequoia_cached_tokens_total", "sequoia_tokens_per_pass_count"),
        *("sequoia_drafted_tokens_total", "sequoia_accepted_tokens_total"),
        'sequoia_requests_total{outcome="ok",path="/v1/chat/completions"}',
        'sequoia_requests_total{outcome="refused",path="/v1/completions"}',
    )
    before = {name: figure(name) for name in names}
    usage = served.chat(PROMPT).json["usage"]
    served.post("/v1/completions", {})
    added = {name: figure(name) - before[name] for name in names}
    passes = (usage["completion_tokens"] + 1) // 2
    assert list(added.values())[:3] == [usage["completion_tokens"], passes, 1000 * passes]
    assert list(added.values())[3:5] == [usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]]
    assert added["sequoia_tokens_per_pass_count"] == passes and added["sequoia_drafted_tokens_total"] == 4 * passes
    assert list(added.values())[-2:] == [1, 1]
    assert figure("sequoia_texts_waiting") == figure("sequoia_texts_running") == 0


@pytest.mark.parametrize(
    "method, path, status, kind",
    [
        ("GET", "/nothing", 404, "not_found_error"),
        ("GET", "/v1/chat/completions", 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
        ("POST", "/v1/embeddings", 404, "not_found_error"),
    ],
)
def test_what_is_not_there_is_said_in_json(served: Served, method: str, path: str, status: int, kind: str) -> None:
    answer = served.request(method, path, {})
    assert (answer.status, answer.error["type"]) == (status, kind)
    message = answer.error["message"]
    assert path in message and "/v1/chat/completions" in message and "GET /health" in message and "{" not in message


def test_paths_below_anthropics_answer_in_its_form(served: Served) -> None:
    for path in ("/v1/messages/batches", "/v1/messages/count_tokens/x"):
        assert served.request("POST", path, {}).json["type"] == "error"
    assert "type" not in served.request("POST", "/v1/messagesx", {}).json


def test_bad_requests_are_answered_before_a_stream_begins(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    for more, param in (({"temperature": -1}, "temperature"), ({"chat_template_kwargs": {"messages": 1}}, None)):
        answer = served.post("/v1/chat/completions", {**body, **more})
        assert (answer.status, answer.error["param"]) == (400, param)
    long = served.chat("word " * 5000, stream=True)
    assert long.status == 400 and "the context holds 4096" in long.error["message"]
    assert long.error["code"] == "context_length_exceeded"


def test_a_text_that_fails_ends_alone(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    served.runtime.faults["poison"] = ModelFilesError("/home/me/model.safetensors: not finite")
    try:
        with served.stream_chat("poison", max_tokens=20) as bad, served.stream_chat(PROMPT) as good:
            *_, last = bad.data()
            pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in good.data()]
            assert "".join(pieces) == answer_to(PROMPT)
        failed = served.chat("poison")
    finally:
        served.runtime.faults.clear()
    assert last["error"]["code"] == "model_failed" and failed.status == 500
    for error in (last["error"], failed.error):
        assert "its log says why" in error["message"] and "/home" not in error["message"]
    assert "/home/me/model.safetensors: not finite" in capfd.readouterr().err
    assert served.chat(PROMPT).status == 200


def test_a_pass_that_fails_ends_its_texts(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    served.runtime.faults["*"] = ModelFilesError("the disk broke")
    try:
        assert (served.chat(PROMPT).status, served.chat(PROMPT).error["type"]) == (500, "server_error")
    finally:
        served.runtime.faults.clear()
    assert capfd.readouterr().err.count("the disk broke") == 2
    assert served.chat(PROMPT).status == 200 and served.engine.running == 0


def test_an_engine_that_fails_ends_everything(capfd: pytest.CaptureFixture[str]) -> None:
    with Served(SharedRuntime()) as served:
        served.runtime.faults["*"] = RuntimeError("/secret: a fault of the program")
        answer = served.chat(PROMPT)
        assert (answer.status, answer.error["code"]) == (500, "engine_failed")
        wait_until(lambda: served.engine.has_failed)
        assert served.get("/health").status == 503 and served.chat(PROMPT).status == 503
    error = capfd.readouterr().err
    assert "RuntimeError: /secret: a fault of the program" in error and "Traceback" in error
    assert "secret" not in answer.body.decode()
