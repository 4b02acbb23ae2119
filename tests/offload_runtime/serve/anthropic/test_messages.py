"""POST /v1/messages: Anthropic's form, whole and in events."""

import json
from typing import Any

import pytest

from tests.fakes.calling_runtime import ADD, NOW, CallingRuntime
from tests.fakes.served import Served

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
TOOLS = [
    {"name": "add", "description": "Adds.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
    {"type": "custom", "name": "now", "input_schema": {"type": "object"}},
]
QUESTION = {"role": "user", "content": "what is it?"}
THINKING = "<think>\nHm.\n</think>\n\n"


def served(*replies: str) -> Served:
    return Served(CallingRuntime(replies=[*replies]))


def post(server: Served, path: str = "/v1/messages", **more: Any) -> Any:
    body = {"model": "m", "max_tokens": 500, "messages": [QUESTION], **more}
    return server.post(path, {name: value for name, value in body.items() if value is not None})


def message(server: Served, **more: Any) -> dict[str, Any]:
    answer = post(server, **more)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_message() -> None:
    with served("Four.") as server:
        found = message(server)
    assert found["id"].startswith("msg_") and (found["type"], found["role"]) == ("message", "assistant")
    assert found["content"] == [{"type": "text", "text": "Four."}] and found["model"] == "m"
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    usage = found["usage"]
    assert usage["output_tokens"] == 6 and usage["input_tokens"] + usage["cache_read_input_tokens"] == len(
        server.runtime.encode([QUESTION])
    )
    assert usage["cache_read_input_tokens"] > 0


def test_thoughts_text_and_calls_are_blocks() -> None:
    with served(f"{THINKING}I add.\n\n{ADD}\n{NOW}", f"{ADD}\n{NOW}") as server:
        found = message(server, tools=TOOLS)
        kinds = [block["type"] for block in found["content"]]
        assert kinds == ["thinking", "text", "tool_use", "tool_use"] and found["stop_reason"] == "tool_use"
        assert found["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": ""}
        use = found["content"][2]
        assert use == {"type": "tool_use", "id": use["id"], "name": "add", "input": {"a": 1, "b": "é"}}
        one = message(server, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
        assert [block["name"] for block in one["content"]] == ["add"]
        told = server.runtime.asked[0].arguments["tools"]
        assert told[0]["function"] == {"name": "add", "description": "Adds.", "parameters": SCHEMA}


def test_why_a_message_ends() -> None:
    with served("Four.") as server:
        found = message(server, stop_sequences=["x", "ur"])
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "ur")
        assert found["content"][0]["text"] == "Fo"
        assert message(server, max_tokens=2)["stop_reason"] == "max_tokens"


def events(server: Served, **more: Any) -> list[dict[str, Any]]:
    body = {"max_tokens": 500, "messages": [QUESTION], **more}
    with server.stream("/v1/messages", body) as stream:
        frames = [frame for frame in stream.frames() if not frame.startswith(":")]
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_in_events() -> None:
    with served(f"{THINKING}I add.\n\n{ADD}\n{NOW}") as server:
        found = events(server, tools=TOOLS)
        prompt = len(server.runtime.encode([QUESTION], tools=server.runtime.asked[0].arguments["tools"]))
    start, ping, *content, delta, stop = found
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    usage = start["message"]["usage"]  # the first pass may be done by now, and then it is known what was cached
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt and ping == {"type": "ping"}
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None} and stop == {"type": "message_stop"}
    assert delta["usage"]["input_tokens"] < prompt and delta["usage"]["output_tokens"] > 10
    starts = [event for event in content if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[2]["content_block"]["input"] == {} and starts[2]["content_block"]["name"] == "add"
    open_block = None
    written: dict[int, str] = {}
    for event in content:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        assert event["index"] == open_block
        if event["type"] == "content_block_stop":
            open_block = None
        if event["type"] == "content_block_delta":
            kind, text = event["delta"].values()
            assert kind in ("thinking_delta", "text_delta", "input_json_delta")
            written[event["index"]] = written.get(event["index"], "") + text
    assert open_block is None
    assert written == {0: "Hm.", 1: "I add.", 2: '{"a": 1, "b": "é"}', 3: "{}"}


def test_what_was_said_goes_back_into_the_prompt() -> None:
    history = [
        {"role": "user", "content": [{"type": "text", "text": "what", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "is it?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "I add."},
                {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": "é"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "seven"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}]
    with served("Seven.") as server:
        message(server, messages=history, system=system)
        assert server.runtime.prompts[0] == (
            "<|system|>\nBe kind.\nBe brief.</s>\n<|user|>\nwhat\nis it?</s>\n"
            f"<|assistant|>\n<think>\nHm.\n</think>\n\nI add.{ADD}</s>\n"
            "<|tool|>\nseven</s>\n<|tool|>\nerror</s>\n<|user|>\nAnd?</s>\n<|assistant|>\n"
        )
        message(server, system="Be kind.")
        assert server.runtime.prompts[1].startswith("<|system|>\nBe kind.</s>\n")
        message(server, messages=[QUESTION, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}])
        assert server.runtime.prompts[2].endswith("it?</s>\n<|system|>\nBe brief.</s>\n<|assistant|>\n")


def test_how_it_is_written() -> None:
    with served("Four.") as server:
        message(server, temperature=0.5, top_p=0.9, top_k=5, metadata={"user_id": "x"}, service_tier="auto")
        arguments = server.runtime.asked[0].arguments
        assert (arguments["temperature"], arguments["top_p"], arguments["top_k"]) == (0.5, 0.9, 5)
        assert arguments["max_new_tokens"] == 500 and "template_arguments" not in arguments
        message(server, thinking={"type": "disabled"})
        assert server.runtime.asked[1].arguments["template_arguments"]["enable_thinking"] is False
        message(server, thinking={"type": "enabled", "budget_tokens": 2000})
        assert server.runtime.asked[2].arguments["template_arguments"]["enable_thinking"] is True
        message(server, tools=TOOLS, tool_choice={"type": "any"})
        assert server.runtime.asked[3].arguments["tool_choice"] == "required"
        message(server, tools=TOOLS, tool_choice={"type": "tool", "name": "now"})
        assert server.runtime.asked[4].arguments["tool_choice"]["function"] == {"name": "now"}
        schema = {"type": "json_schema", "schema": SCHEMA}
        message(server, output_config={"format": schema})
        assert server.runtime.asked[5].arguments["response_format"]["json_schema"]["schema"] == SCHEMA


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"max_tokens": None}, "max_tokens: is missing"),
        ({"max_tokens": 0}, "max_tokens: must be"),
        ({"messages": None}, "messages: must be a list"),
        ({"messages": []}, "messages: must be a list"),
        ({"messages": [5]}, "messages[0]: must be an object"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type: image"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image is not supported: this model reads text"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text: is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id: is missing"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]}
                ]
            },
            "messages[0].content[0].content[0].type: image",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "content": "It is"}]}, "does not continue a reply"),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "redacted_thinking"}]}]},
            "thoughts that only",
        ),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": 5}, "tools: must be a list"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: 'web_search_20250305'"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name: is missing"),
        ({"tools": [{"name": "a b"}]}, "letters, digits"),
        ({"tools": [{"name": "a", "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"speed": "fast"}, "speed: 'fast' is not supported"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: only with tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"thinking": {"type": "x"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "x"}}}, "output_config.format"),
        ({"mcp_servers": []}, "mcp_servers: is not supported"),
        ({"stop": "a", "unknown": 5}, "unknown: is not a field"),
    ],
)
def test_what_is_wrong_is_named_in_anthropic_s_form(more: dict[str, Any], named: str) -> None:
    with served("Four.") as server:
        answer = post(server, **more)
    assert answer.status == 400 and set(answer.json) == {"type", "error"} and answer.json["type"] == "error"
    assert answer.json["error"]["type"] == "invalid_request_error" and named in answer.json["error"]["message"]


def test_errors_of_every_kind() -> None:
    with Served(CallingRuntime(replies=["Four."]), model="tiny") as server:
        answer = post(server)
        assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
        answer = server.request("GET", "/v1/messages")
        assert (answer.status, answer.json["error"]["type"]) == (405, "invalid_request_error")
        server.engine.stop()
        answer = post(server, model="tiny")
        assert (answer.status, answer.json["error"]["type"]) == (503, "overloaded_error")
        answer = server.post("/v1/messages", b"[")
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_a_prompt_that_is_too_long_is_said_so_in_the_words_that_clients_know() -> None:
    long = "hello " * 200_000
    call = {"type": "tool_use", "id": "a", "name": "add", "input": {"a": long}}
    in_a_call = [QUESTION, {"role": "assistant", "content": [call]}, QUESTION]
    tool = {"name": "add", "description": long, "input_schema": {"type": "object"}}
    with served("Four.") as server:
        for more in ({"system": long}, {"messages": in_a_call}, {"tools": [tool]}):
            for path, most in (("/v1/messages", 5), ("/v1/messages/count_tokens", None)):
                answer = post(server, path, max_tokens=most, **more)
                assert answer.status == 400, answer.body
                assert answer.json["error"]["message"].startswith("prompt is too long: messages: ")
        assert not server.runtime.asked


def test_an_error_within_a_stream() -> None:
    with served("Four.") as server:
        server.runtime.faults["*"] = RuntimeError("a fault of the test")
        found = events(server)
        assert found[-1] == {"type": "error", "error": {"type": "api_error", "message": found[-1]["error"]["message"]}}
        assert "a fault" not in found[-1]["error"]["message"]


def test_tokens_are_counted() -> None:
    with served("Four.") as server:
        path = "/v1/messages/count_tokens"
        found = post(server, path, max_tokens=None).json
        assert found == {"input_tokens": len(server.runtime.encode([QUESTION]))} and not server.runtime.asked
        more = post(server, path, max_tokens=None, tools=TOOLS, system="Be kind.").json
        assert more["input_tokens"] > found["input_tokens"] + 100
        answer = post(server, path, max_tokens=None, messages=[])
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
        lone = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
        assert (
            post(server, path, max_tokens=None, messages=[{"role": "user", "content": [lone]}]).json["input_tokens"] > 1
        )
