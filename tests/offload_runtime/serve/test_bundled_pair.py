"""The server over the bundled pair: what it answers is what the runtime's own calls give."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.serve.api.token_texts import LEAST
from tests.fakes.served import Served

PROMPT = "Show me the code of `textwrap.dedent`."
MESSAGES = [{"role": "user", "content": PROMPT}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def served(pair: OffloadRuntime) -> Iterator[Served]:
    with Served(pair) as one:
        yield one


def content(answer: Any, index: int = 0) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][index]["message"]["content"])


def test_replies_are_those_of_generate(served: Served, pair: OffloadRuntime) -> None:
    expected = pair.generate(MESSAGES, 24, temperature=0)
    pair.forget()
    first = served.chat(PROMPT, **GREEDY)
    assert content(first) == expected.text
    assert first.json["choices"][0]["finish_reason"] == expected.finish_reason
    usage = first.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (expected.stats.prompt_tokens, 24)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    again = served.chat(PROMPT, **GREEDY, n=2)
    assert content(again) == content(again, 1) == expected.text
    assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    with served.stream_chat(PROMPT, **GREEDY) as stream:
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream.data()) == expected.text


def test_several_conversations_share_passes(served: Served, pair: OffloadRuntime) -> None:
    prompts = [f"What is the module `{name}` for?" for name in ("json", "os", "heapq", "re", "ast", "abc")]
    expected = [pair.generate([{"role": "user", "content": one}], 24, temperature=0).text for one in prompts]
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda one=one: found.update({one: content(served.chat(one, **GREEDY))}))
        for one in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[one] for one in prompts] == expected


def test_seeds_make_replies_repeatable(served: Served, pair: OffloadRuntime) -> None:
    expected = pair.generate(MESSAGES, 12, temperature=0.8, seed=5).text
    assert content(served.chat(PROMPT, temperature=0.8, seed=5, max_tokens=12)) == expected


def test_logprobs_are_those_of_the_runtime(served: Served, pair: OffloadRuntime) -> None:
    expected = pair.generate(MESSAGES, 6, temperature=0, top_logprobs=2).logprobs
    asked = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    entries = served.chat(PROMPT, **asked).json["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert all(entry["top_logprobs"][0]["logprob"] >= entry["logprob"] - 1e-4 > LEAST for entry in entries)
    assert "".join(entry["token"] for entry in entries) == content(served.chat(PROMPT, **asked))


def test_text_and_token_ids_are_continued(served: Served, pair: OffloadRuntime) -> None:
    ids = pair.tokenizer("def dedent(").input_ids
    expected = pair.generate(ids, 12, temperature=0).text
    for prompt in ("def dedent(", ids):
        answer = served.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 12, "logprobs": 0})
        assert answer.json["choices"][0]["text"] == expected
        assert "".join(answer.json["choices"][0]["logprobs"]["tokens"]) == expected
    stop = expected[3:5]
    stopped = served.post("/v1/completions", {"prompt": ids, "temperature": 0, "max_tokens": 12, "stop": stop})
    choice = stopped.json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (expected[: expected.index(stop)], "stop")


def test_replies_follow_a_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["dedent", "indent"]},
            "size": {"type": "integer", "maximum": 99, "minimum": 0},
        },
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    found = json.loads(content(served.chat(PROMPT, response_format=form, seed=1, max_tokens=60)))
    assert found["name"] in ("dedent", "indent") and 0 <= found["size"] <= 99
    wrong = served.chat(PROMPT, response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}})
    assert (wrong.status, wrong.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "body, said",
    [
        ({"logit_bias": {"999999": 1}}, "999999 is no token id"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "the context holds 256"),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, "more than the context holds"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "is given by the conversation"),
    ],
)
def test_what_the_runtime_refuses_is_told(served: Served, body: dict[str, Any], said: str) -> None:
    answer = served.post("/v1/chat/completions", {"messages": MESSAGES, **body})
    assert answer.status == 400 and said in answer.error["message"]
    assert "/" not in answer.error["message"].replace("messages:", "")
