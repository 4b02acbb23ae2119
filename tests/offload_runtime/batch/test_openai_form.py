"""Lines of OpenAI's batch form: read as a server reads requests, and answered as it answers them."""

import json
from pathlib import Path
from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.batch import command, main
from offload_runtime.batch.input_file import InputLine
from offload_runtime.batch.job_input import read_input
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.batch_line import output_line
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import ModelFilesError, PromptError, UsageError
from offload_runtime.options.run_options import DEMO_TARGET
from offload_runtime.options.sampling_options import SamplingOptions
from tests.fakes.counting_runtime import CountingRuntime

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "What is the module `os` for?"}]
FORMS = Forms(JobKeys("abcdef", "012345"), SamplingOptions(temperature=0.5), "tiny")
KEY = f"abcdef-012345-{'0' * 16}-4"
HOSTILE = {
    "no name": ({"url": CHAT, "body": {"messages": MESSAGES}}, "custom_id: must be a text"),
    "an empty name": ({"custom_id": "", "url": CHAT, "body": {"messages": MESSAGES}}, "custom_id: must be a text"),
    "a number": ({"custom_id": 5, "url": CHAT, "body": {"messages": MESSAGES}}, "custom_id: must be a text"),
    "a method": ({"custom_id": "a", "method": "GET", "url": CHAT, "body": {}}, "method: must be POST"),
    "no url": ({"custom_id": "a", "body": {"messages": MESSAGES}}, "url: must be /v1/chat/completions or"),
    "embeddings": ({"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "a"}}, "url: must be"),
    "a url of wrong type": ({"custom_id": "a", "url": {}, "body": {}}, "url: must be"),
    "no body": ({"custom_id": "a", "url": CHAT}, "body: must be an object"),
    "a body of wrong type": ({"custom_id": "a", "url": CHAT, "body": "a"}, "body: must be an object"),
    "a stream": ({"custom_id": "a", "url": CHAT, "body": {"messages": MESSAGES, "stream": True}}, "stream: replies go"),
    "no messages": ({"custom_id": "a", "url": CHAT, "body": {}}, "messages: must be a list"),
    "an unknown field": ({"custom_id": "a", "url": TEXT, "body": {"prompt": "a", "tempratur": 1}}, "'temperature'"),
}


def request(name: str, url: str = TEXT, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "any", **body}}


def read(fields: Any, forms: Forms = FORMS) -> Any:
    return forms.read(InputLine(4, json.dumps(fields).encode(), "0" * 16))


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(("fields", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_line_is_answered_as_by_a_server(fields: dict[str, Any], said: str) -> None:
    line = read(fields)
    with pytest.raises(UsageError) as refused:
        line.requests()
    answer = json.loads(output_line(line.failure(refused.value)))
    name = fields.get("custom_id")
    assert answer["id"] == f"batch_req_{KEY}" and answer["custom_id"] == (name if isinstance(name, str) else None)
    assert answer["response"]["status_code"] == 400 and answer["response"]["request_id"] == KEY
    error = answer["response"]["body"]["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert answer["error"] == {"code": "invalid_request", "message": error["message"]}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(PromptError("long"), 400, "invalid_request"), (ModelFilesError("bad"), 500, "failed")],
)
def test_an_error_of_the_runtime_is_told_by_its_status(error: Any, status: int, code: str) -> None:
    answer = read(request("a", prompt="a")).failure(error)
    assert answer["response"]["status_code"] == status and answer["error"] == {"code": code, "message": str(error)}
    assert answer["response"]["body"]["error"]["message"] == str(error)


def test_values_of_a_body_go_before_those_of_the_command() -> None:
    forms = Forms(FORMS.keys, SamplingOptions(temperature=0.5, seed=7, max_new_tokens=9), "tiny")
    texts = read(request("a", prompt=["a", [1, 2]], n=2, max_tokens=3, seed=None), forms).requests()
    assert [text.prompt for text in texts] == ["a", "a", [1, 2], [1, 2]]
    assert all(text.arguments["temperature"] == 0.5 and text.arguments["max_new_tokens"] == 3 for text in texts)
    seeds = [text.arguments["seed"] for text in texts]
    assert seeds[0] != seeds[1], "several texts of one prompt differ"
    (one,) = read(request("a", prompt="a", seed=3, temperature=0), forms).requests()
    assert (one.arguments["seed"], one.arguments["temperature"]) == (3, 0.0)


@pytest.mark.parametrize("others", [[], ["oops", request("b", prompt="b")]])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, others: list[Any]) -> None:
    path = write(tmp_path / "in", request("a", prompt="a"), *others, request("a", prompt="c"))
    with pytest.raises(UsageError, match=f"line {2 + len(others)} has the custom_id of line 1, a: give each"):
        read_input(path, FORMS)


def test_a_line_that_cannot_be_read_is_answered_in_the_form_of_the_others(tmp_path: Path) -> None:
    job = read_input(write(tmp_path / "in", "oops", request("a", prompt="a")), FORMS)
    line = job.forms.read(next(job.lines()))
    with pytest.raises(UsageError) as refused:
        line.requests()
    answer = line.failure(refused.value)
    assert answer["id"].startswith("batch_req_") and answer["error"]["line"] == 1
    assert answer["custom_id"] is None and answer["response"] is None


def test_a_job_is_gone_on_with_in_this_form_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CountingRuntime(parallel=1)
    monkeypatch.setattr(command, "load_runtime", lambda options, arguments, note: runtime)
    lines = [request("a", prompt="2 cats"), "oops", request("b", CHAT, messages=[{"role": "user", "content": "1 dog"}])]
    files = ["--input", str(write(tmp_path / "in", *lines)), "--output", str(tmp_path / "out")]
    assert main(files) == 0
    whole = (tmp_path / "out").read_bytes()
    for cut in range(0, len(whole), 7):
        (tmp_path / "out").write_bytes(whole[:cut])
        assert main(files) == 0
        answers = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
        assert sorted(answer["id"].rpartition("-")[2] for answer in answers) == ["0", "1", "2"]
    body = {answer["custom_id"]: answer["response"]["body"] for answer in answers if answer["response"]}
    assert body["a"]["choices"][0]["text"] == "cats cats"
    assert body["b"]["choices"][0]["message"]["content"] == "dog"


def test_answers_are_those_of_the_model_in_forms_that_openai_reads(tmp_path: Path) -> None:
    lines = [
        request("chat", CHAT, messages=MESSAGES, max_completion_tokens=12, logprobs=True, top_logprobs=2),
        request("text", prompt=["def walk(", "class A"], max_tokens=8, logprobs=1),
        request("two", CHAT, messages=MESSAGES, n=2, seed=5, temperature=0.9, max_tokens=5),
        request("bad", prompt="a", echo=True),
        request("long", prompt="word " * 5000),
    ]
    write(tmp_path / "in", *lines)
    files = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert main([*files, "--device", "cpu", "--dtype", "float32", "--temperature", "0", "--quiet"]) == 0
    answers = {row["custom_id"]: row for row in map(json.loads, (tmp_path / "out").read_bytes().splitlines())}
    status = {name: row["response"]["status_code"] for name, row in answers.items()}
    assert status == {"chat": 200, "text": 200, "two": 200, "bad": 400, "long": 400}
    assert "the context holds" in answers["long"]["error"]["message"] and answers["chat"]["error"] is None
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    chat = ChatCompletion.model_validate(answers["chat"]["response"]["body"])
    text = Completion.model_validate(answers["text"]["response"]["body"])
    two = ChatCompletion.model_validate(answers["two"]["response"]["body"])
    with OffloadRuntime.from_pretrained(DEMO_TARGET, device="cpu", dtype="float32") as runtime:
        said = runtime.generate(MESSAGES, max_new_tokens=12, temperature=0.0)
        continued = [runtime.generate(p, max_new_tokens=8, temperature=0.0).text for p in ("def walk(", "class A")]
    assert chat.choices[0].message.content == said.text and chat.model == "any"
    assert chat.choices[0].logprobs and len(chat.choices[0].logprobs.content or ()) == len(said.token_ids)
    assert [choice.text for choice in text.choices] == continued
    assert [choice.index for choice in two.choices] == [0, 1]
    assert chat.usage and text.usage and chat.usage.completion_tokens == len(said.token_ids)
