"""Anthropic's own SDK against the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fakes.calling_runtime import ADD, CallingRuntime
from tests.fakes.served import Served

if TYPE_CHECKING:
    import anthropic  # at run time where it is used: it takes over a second to import

TOOLS: list[anthropic.types.ToolParam] = [
    {"name": "add", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
]
QUESTION: anthropic.types.MessageParam = {"role": "user", "content": "what is it?"}


@pytest.fixture
def server() -> Iterator[Served]:
    with Served(CallingRuntime(replies=[f"<think>\nHm.\n</think>\n\nI add.\n{ADD}", "Four."])) as server:
        yield server


@pytest.fixture
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_call_and_its_result(client: anthropic.Anthropic, server: Served) -> None:
    asked = client.messages.create(model="m", max_tokens=500, messages=[QUESTION], tools=TOOLS)
    thought, text, use = asked.content
    assert (thought.type, text.type, use.type) == ("thinking", "text", "tool_use") and asked.stop_reason == "tool_use"
    assert use.type == "tool_use" and use.input == {"a": 1, "b": "é"}
    result: anthropic.types.ToolResultBlockParam = {"type": "tool_result", "tool_use_id": use.id, "content": "seven"}
    history = [QUESTION, {"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
    final = client.messages.create(model="m", max_tokens=500, messages=history, tools=TOOLS)  # type: ignore[arg-type]
    assert [block.text for block in final.content if block.type == "text"] == ["Four."]
    assert (
        final.stop_reason == "end_turn" and "seven" in server.runtime.prompts[1] and "Hm." in server.runtime.prompts[1]
    )


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="m", max_tokens=500, messages=[QUESTION], tools=TOOLS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "I add." and [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].type == "tool_use" and final.content[2].input == {"a": 1, "b": "é"}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens > 10
    assert final.usage.input_tokens > 0 and (final.usage.cache_read_input_tokens or 0) > 0


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="m", messages=[QUESTION], system="Be kind.", tools=TOOLS)
    asked = client.messages.create(model="m", max_tokens=1, messages=[QUESTION], system="Be kind.", tools=TOOLS)
    assert counted.input_tokens == asked.usage.input_tokens + (asked.usage.cache_read_input_tokens or 0)


def test_errors_are_the_sdk_s(client: anthropic.Anthropic) -> None:
    import anthropic

    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.type"):
        client.messages.create(
            model="m",
            max_tokens=5,
            messages=[QUESTION],
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )
