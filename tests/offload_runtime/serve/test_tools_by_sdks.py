"""Tools by OpenAI's and Anthropic's SDKs, over the server with a model of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from offload_runtime import OffloadRuntime
from tests.fakes.served import PATIENCE, Served
from tests.samples.calling_model import PIECES, save_caller
from tests.samples.tool_templates import tool

if TYPE_CHECKING:
    import openai

QUESTION: Any = {"role": "user", "content": "hello"}
TOOLS: Any = [tool("add", a="integer"), tool("flip", up="boolean")]
GREEDY = {"temperature": 0}
FLIP: Any = {"type": "function", "function": {"name": "flip"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("caller")
    save_caller(directory)
    with (
        OffloadRuntime.from_pretrained(directory, "none", "cpu", dtype="float32", parallel=2) as runtime,
        Served(runtime) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    given = {"model": "m", "messages": [QUESTION], "tools": TOOLS, "temperature": 0, "max_tokens": 90, **more}
    return client.chat.completions.create(**given)


def test_a_call_and_its_result(client: openai.OpenAI, server: Served) -> None:
    asked = ask(client)
    (choice,) = asked.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "So:"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
    result = {"role": "tool", "tool_call_id": call.id, "content": "seven"}
    final = ask(client, messages=[QUESTION, choice.message, result])
    assert final.choices[0].message.content == "So:" and final.usage.prompt_tokens > asked.usage.prompt_tokens
    assert final.usage.prompt_tokens_details.cached_tokens > 0


def test_calls_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=[QUESTION], tools=TOOLS, temperature=0, max_tokens=90
    ) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    assert choice.message.tool_calls and choice.message.tool_calls[0].function.arguments == '{"a": 1}'
    assert choice.message.content == "So:" and choice.finish_reason == "tool_calls"


def test_a_call_is_forced_or_not_made(client: openai.OpenAI) -> None:
    import openai

    (choice,) = ask(client, tool_choice=FLIP).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "flip" and {*map(type, json.loads(call.function.arguments).values())} <= {bool}
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    (choice,) = ask(client, tool_choice="none").choices
    assert choice.message.content == "So:" + "".join(PIECES) and choice.finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="tool_choice: there is no tool 'sum'"):
        ask(client, tool_choice={"type": "function", "function": {"name": "sum"}})


def test_the_same_by_anthropic_s(server: Served) -> None:
    tools: Any = [{"name": one["function"]["name"], "input_schema": one["function"]["parameters"]} for one in TOOLS]
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        text, use = client.messages.create(
            model="m", max_tokens=90, messages=[QUESTION], tools=tools, extra_body=GREEDY
        ).content
        assert text.type == "text" and use.type == "tool_use" and use.input == {"a": 1}
        forced = client.messages.create(
            model="m", max_tokens=90, messages=[QUESTION], tools=tools, extra_body=GREEDY, tool_choice={"type": "any"}
        )
        assert [block.type for block in forced.content] == ["tool_use"] and forced.stop_reason == "tool_use"
        counted = client.messages.count_tokens(model="m", messages=[QUESTION], tools=tools)
        used = forced.usage
        assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
