"""Tools over /v1/chat/completions: in requests, in answers whole and in chunks, and back in the next request."""

import json
from typing import Any

import pytest

from tests.fakes.calling_runtime import ADD, NOW, CallingRuntime
from tests.fakes.served import Served
from tests.samples.tool_templates import tool

TOOLS = [tool("add", a="integer", b="string"), tool("now")]
QUESTION = {"role": "user", "content": "what is it?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "é"}'}}


def served(*replies: str) -> Served:
    return Served(CallingRuntime(replies=[*replies]))


def ask(server: Served, **more: Any) -> dict[str, Any]:
    answer = server.post("/v1/chat/completions", {"messages": [QUESTION], "tools": TOOLS, **more})
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]


def test_calls_in_an_answer() -> None:
    with served(f"I add.\n\n{ADD}\n{NOW}", ADD, "Four.") as server:
        choice = ask(server)
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I add."
        first, second = choice["message"]["tool_calls"]
        assert {**CALL, "id": first["id"]} == first and second["function"] == {"name": "now", "arguments": "{}"}
        assert first["id"] and first["id"] != second["id"]
        assert ask(server)["message"]["content"] is None
        without = ask(server)
        assert without["finish_reason"] == "stop" and without["message"] == {"role": "assistant", "content": "Four."}
        assert server.runtime.asked[0].arguments["tools"] == TOOLS
        assert '"name": "add"' in server.runtime.prompts[0]


def test_one_call_where_several_are_not_wanted() -> None:
    with served(f"{ADD}\n{NOW}") as server:
        assert len(ask(server, parallel_tool_calls=False)["message"]["tool_calls"]) == 1
        assert len(ask(server, parallel_tool_calls=True)["message"]["tool_calls"]) == 2
        body = {"messages": [QUESTION], "tools": TOOLS, "parallel_tool_calls": False}
        with server.stream("/v1/chat/completions", body) as stream:
            assert len([one for chunk in stream.data() for one in deltas(chunk)]) == 1


def test_a_call_that_is_cut_short_is_text_and_ends_for_length() -> None:
    with served(ADD) as server:
        choice = ask(server, max_tokens=20)
        assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
        assert ADD.startswith(choice["message"]["content"])


def deltas(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    return chunk["choices"][0]["delta"].get("tool_calls", [])


def test_calls_in_chunks() -> None:
    with served(f"<think>\nHm.\n</think>\n\nI add.\n{ADD}\n{NOW}") as server:
        body = {"messages": [QUESTION], "tools": TOOLS, "n": 2}
        with server.stream("/v1/chat/completions", body) as stream:
            chunks = [*stream.data()]
    for index in range(2):
        mine = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        calls = [one for chunk in mine for one in deltas(chunk)]
        assert [one["index"] for one in calls] == [0, 1] and calls[0]["id"] != calls[1]["id"]
        assert {**CALL, "index": 0, "id": calls[0]["id"]} == calls[0]
        texts = [chunk["choices"][0]["delta"] for chunk in mine]
        assert "".join(one.get("content", "") for one in texts) == "I add."
        assert "".join(one.get("reasoning_content", "") for one in texts) == "Hm."
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in mine]
        assert reasons[-1] == "tool_calls" and not any(reasons[:-1])


@pytest.mark.parametrize("arguments", ['{"a": 1, "b": "é"}', {"a": 1, "b": "é"}])
def test_calls_and_their_results_go_back_into_the_prompt(arguments: Any) -> None:
    call = {"id": "one", "type": "function", "function": {"name": "add", "arguments": arguments}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "Hm."}
    results = [{"role": "tool", "tool_call_id": "one", "content": [{"type": "text", "text": "seven"}]}]
    with served("Seven.") as server:
        assert ask(server, messages=[QUESTION, asked, *results])["message"]["content"] == "Seven."
        assert server.runtime.prompts[0].endswith(
            f"<|assistant|>\n<think>\nHm.\n</think>\n\n{ADD}</s>\n<|tool|>\nseven</s>\n<|assistant|>\n"
        )


def test_no_tools_are_told_of_where_none_may_be_called() -> None:
    with served("Four.") as server:
        assert ask(server, tool_choice="auto") and ask(server, tools=[]) and ask(server, tools=None)
        assert [("tools" in one.arguments, "tool_choice" in one.arguments) for one in server.runtime.asked] == [
            (True, False),
            (False, False),
            (False, False),
        ]
        ask(server, tool_choice="none")
        assert server.runtime.asked[-1].arguments["tool_choice"] == "none"
        named = {"type": "function", "function": {"name": "add"}}
        ask(server, tool_choice=named)
        assert server.runtime.asked[-1].arguments["tool_choice"] == named


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": 5}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [TOOLS[0]] * 2}, "tools"),
        ({"tools": [TOOLS[0]] * 2000}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": []}, "functions"),
        ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [5]}]}, "messages[1].tool_calls[0]"),
        (
            {"messages": [QUESTION, {"role": "assistant", "tool_calls": [{}]}]},
            "messages[1].tool_calls[0].function.name",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "tool_calls": 5}]}, "messages[1].tool_calls"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [QUESTION, {"role": "tool", "tool_call_id": "a"}]}, "messages[1].content"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], param: str) -> None:
    with served("Four.") as server:
        answer = server.post("/v1/chat/completions", {"messages": [QUESTION], "tools": TOOLS, **more})
        assert answer.status == 400 and answer.error["param"] == param, answer.body


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"a": NaN}', "[" * 1000, 5, [1]])
def test_arguments_that_are_no_object(arguments: Any) -> None:
    call = {"id": "one", "function": {"name": "add", "arguments": arguments}}
    with served("Four.") as server:
        messages = [QUESTION, {"role": "assistant", "tool_calls": [call]}]
        answer = server.post("/v1/chat/completions", {"messages": messages})
        assert answer.status == 400
        assert answer.error["param"] == "messages[1].tool_calls[0].function.arguments"


def test_what_the_runtime_refuses_is_said() -> None:
    with served("Four.") as server:
        messages = [QUESTION, {"role": "assistant", "content": "x", "tool_calls": []}]
        assert server.post("/v1/chat/completions", {"messages": messages}).status == 200
        assert json.loads(server.post("/v1/chat/completions", {"messages": []}).body)["error"]["param"] == "messages"
