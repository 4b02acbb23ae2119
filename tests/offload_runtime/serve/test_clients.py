"""The clients that people use: OpenAI's SDK and curl."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from offload_runtime.serve.http.guard import Access
from tests.fakes.served import PATIENCE, Served
from tests.fakes.shared_runtime import SharedRuntime, answer_to

if TYPE_CHECKING:
    from openai import OpenAI

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
KEY = "sk-secret"
PROMPT = "once upon a time"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with Served(SharedRuntime(), model="tiny", access=Access(KEY, True)) as one:
        yield one


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    with Served(SharedRuntime()) as one:
        yield one


@pytest.fixture
def client(keyed: Served) -> "Iterator[OpenAI]":
    openai = pytest.importorskip("openai", reason="needs the SDK: pip install openai")
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as one:
        yield one


def test_openai_chats(client: "OpenAI") -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "be kind"}, *MESSAGES],
        temperature=0.3,
        max_completion_tokens=500,
        seed=1,
        n=2,
        logprobs=True,
        top_logprobs=2,
        user="me",
        extra_body={"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert [choice.message.content for choice in reply.choices] == [answer_to(PROMPT)] * 2
    assert reply.choices[0].finish_reason == "stop" and reply.model == "tiny"
    assert reply.usage and reply.usage.prompt_tokens_details and reply.usage.prompt_tokens_details.cached_tokens
    logprobs = reply.choices[1].logprobs
    assert logprobs and logprobs.content
    assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content).startswith(answer_to(PROMPT).encode())


def test_openai_streams(client: "OpenAI") -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer_to(PROMPT)
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens > 5 and not chunks[-1].choices
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"


def test_openai_helpers_accumulate_streams(client: "OpenAI") -> None:
    with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == answer_to(PROMPT)


def test_openai_completes_text_and_lists_models(client: "OpenAI") -> None:
    done = client.completions.create(model="tiny", prompt=[PROMPT, "x"], max_tokens=500, logprobs=1)
    assert [choice.text for choice in done.choices] == [answer_to(PROMPT), answer_to("x")]
    stream = client.completions.create(model="tiny", prompt=PROMPT, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer_to(PROMPT)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_the_documented_script_asks(local: Served, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="needs the SDK: pip install openai")
    script = tmp_path / "ask.py"
    script.write_text(DOCUMENT.split("```python\n")[1].split("```")[0])
    done = subprocess.run([sys.executable, script, f"{local.url}/v1"], capture_output=True, text=True)
    assert done.stdout.startswith(f"{answer_to('Why is the sky blue?')}\n") and done.stdout.endswith(" tokens\n")


def test_openai_raises_its_own_errors(client: "OpenAI", keyed: Served) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="temperature: -1 is out of range") as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    error = bad.value
    assert (error.param, error.code, error.type) == ("temperature", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        client.with_options(api_key="sk-other").models.list()
    keyed.engine.most, most = 0, keyed.engine.most
    try:
        with pytest.raises(openai.InternalServerError, match="the queue is full") as full:
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert full.value.response.headers["retry-after"]
    finally:
        keyed.engine.most = most


def test_openai_leaves_a_stream(client: "OpenAI", keyed: Served) -> None:
    with client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model="tiny", messages=MESSAGES).choices


CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")


def curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", str(PATIENCE), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@CURL
def test_curl(local: Served) -> None:
    url = f"{local.url}/v1/chat/completions"
    body = json.dumps({"messages": MESSAGES})
    whole = json.loads(curl(url, "-H", "Content-Type: application/json", "-d", body))
    assert whole["choices"][0]["message"]["content"] == answer_to(PROMPT)
    events = curl("-N", url, "-d", json.dumps({"messages": MESSAGES, "stream": True})).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and events[0].startswith("data: {")
    assert "é" in curl("-N", url, "-d", json.dumps({"messages": MESSAGES, "stream": True}))
    assert json.loads(curl(f"{local.url}/health"))["status"] == "ok"


@CURL
def test_documented_calls_of_curl(local: Served) -> None:
    calls = re.findall(r"^curl .*(?:\n {4}.*)*", DOCUMENT, re.MULTILINE)
    for call in calls:
        command = call.replace("http://127.0.0.1:8000", local.url)
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert '"finish_reason":"stop"' in done.stdout and "é" in done.stdout, done.stderr
    assert len(calls) == 2


@CURL
def test_curl_with_a_long_body(local: Served) -> None:
    """Which curl announces first, and sends once it is told to."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 3_000_000}]})
    done = subprocess.run(
        ["curl", "-sS", "-d", "@-", f"{local.url}/v1/chat/completions"], input=body, capture_output=True, text=True
    )
    assert "3000000 characters are more than the context holds" in done.stdout
