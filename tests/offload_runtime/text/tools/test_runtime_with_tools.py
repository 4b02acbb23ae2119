"""A runtime tells its model of tools and returns the calls that it writes, apart from the text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.text.tools.tool_call import ToolCall
from tests.samples.calling_model import PIECES, save_caller
from tests.samples.tokenizer_samples import byte_level
from tests.samples.tool_templates import tool

QUESTION = [{"role": "user", "content": "hello"}]
TOOLS = [tool("add", a="integer")]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OffloadRuntime]:
    directory = tmp_path_factory.mktemp("caller")
    save_caller(directory)
    with OffloadRuntime.from_pretrained(directory, "none", "cpu", dtype="float32") as runtime:
        yield runtime


def test_calls_come_apart_from_the_text(caller: OffloadRuntime) -> None:
    steps = [*caller.stream(QUESTION, tools=TOOLS, temperature=0, max_new_tokens=20)]
    reply = caller.last_reply
    assert (reply.text, reply.finish_reason) == ("So:", "stop")
    assert reply.tool_calls == [ToolCall("add", '{"a": 1}')] and reply.tool_calls[0].id
    assert [call for step in steps for call in step.tool_calls] == reply.tool_calls
    assert "".join(step.text for step in steps) == reply.text
    many = caller.generate_many([QUESTION, QUESTION], tools=TOOLS, temperature=0, max_new_tokens=20)
    assert [one.tool_calls for one in many] == [reply.tool_calls] * 2


def test_the_stop_string_that_ended_the_answer_is_told(caller: OffloadRuntime) -> None:
    steps = [*caller.stream(QUESTION, tools=TOOLS, temperature=0, max_new_tokens=20, stop=["x", ":"])]
    assert (caller.last_reply.text, caller.last_reply.stop_string, steps[-1].stop_string) == ("So", ":", ":")
    assert caller.generate(QUESTION, temperature=0, max_new_tokens=20).stop_string is None


def test_the_model_is_told_of_tools(caller: OffloadRuntime) -> None:
    without = caller.generate(QUESTION, temperature=0, max_new_tokens=20)
    assert without.text == "So:" + "".join(PIECES) and not without.tool_calls
    told = caller.generate(QUESTION, tools=TOOLS, temperature=0, max_new_tokens=1)
    assert told.stats.prompt_tokens > without.stats.prompt_tokens + 50
    ids = caller.tokenizer.apply_chat_template(QUESTION, TOOLS, add_generation_prompt=True, return_dict=False)
    assert told.stats.prompt_tokens == len(ids)
    assert caller.generate(ids, tools=TOOLS, temperature=0, max_new_tokens=20).tool_calls


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_may_have_to_be_a_call(caller: OffloadRuntime, temperature: float) -> None:
    tools = [tool("flip", up="boolean"), tool("now")]
    flip = {"type": "function", "function": {"name": "flip"}}
    for choice, names in (("required", {"flip", "now"}), (flip, {"flip"})):
        found = set()
        for seed in range(6):
            reply = caller.generate(
                *(QUESTION, 90, seed), tools=tools, tool_choice=choice, temperature=temperature, end_token_ids=[2]
            )
            assert reply.finish_reason == "stop" and reply.text == "" and len(reply.tool_calls) == 1
            call = reply.tool_calls[0]
            assert call.name in names and {*map(type, json.loads(call.arguments).values())} <= {bool}
            found.add(call.name)
        assert found == names or not temperature


def test_a_reply_that_must_not_call(caller: OffloadRuntime) -> None:
    reply = caller.generate(QUESTION, tools=TOOLS, tool_choice="none", temperature=0, max_new_tokens=20)
    assert reply.text == "So:" + "".join(PIECES) and not reply.tool_calls
    assert reply.stats.prompt_tokens == caller.generate(QUESTION, max_new_tokens=1).stats.prompt_tokens


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("hello", {}, "tools need a chat"),
        (QUESTION, {"split_reasoning": False}, "tools need a chat"),
        (QUESTION, {"tools": [{"type": "custom"}]}, "only tools of"),
        (QUESTION, {"tool_choice": "any"}, "names a function"),
        (QUESTION, {"tools": None, "tool_choice": "required"}, "there are no tools"),
        (QUESTION, {"tool_choice": "required", "response_format": {"type": "json_object"}}, "give one of the two"),
    ],
)
def test_tools_that_cannot_be_offered(
    caller: OffloadRuntime, prompt: Any, arguments: dict[str, Any], message: str
) -> None:
    for run in (caller.stream, lambda *given, **named: caller.begin(GenerationRequest(given[0], named))):
        with pytest.raises(UsageError, match=message):
            run(prompt, **{"tools": TOOLS, **arguments})


def test_a_model_whose_template_knows_no_tools(caller: OffloadRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller.tokenizer, "chat_template", byte_level().chat_template)
    with pytest.raises(UsageError, match="no place for tools"):
        caller.stream(QUESTION, tools=TOOLS)
    monkeypatch.setattr(caller.tokenizer, "chat_template", f"{byte_level().chat_template}{{{{ tools }}}}")
    with pytest.raises(UsageError, match="no form of tool calls"):
        caller.stream(QUESTION, tools=TOOLS)
