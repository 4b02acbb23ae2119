"""A reply that must be a call: what each family's template writes is allowed, and what is no such call is not."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from offload_runtime.errors import UsageError
from offload_runtime.grammar.forced_call import forced_call
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.tools.call_formats import HARMONY_CALLS, call_format
from offload_runtime.text.tools.call_frame import call_frame
from offload_runtime.text.tools.tool_definitions import Tools
from tests.samples.tokenizer_samples import byte_level, with_template
from tests.samples.tool_templates import FAMILIES, call, family_tokenizer, tool

ADD = tool("add", a="integer", note="string", names="array")
ADD["function"]["parameters"]["required"] = ["a"]
KIND = tool("kind")
KIND["function"]["parameters"] = {"type": "object", "properties": {"of": {"enum": ["x y", 'z"']}}, "required": ["of"]}
TOOLS = Tools.of([ADD, KIND, tool("now")], "required")
QUESTION = {"role": "user", "content": "what is it?"}
FORCED = [name for name in FAMILIES if name not in ("gemma", "lfm", "dsml")]
RIGHT = [
    ("add", {"a": 1}),
    ("add", {"a": -2, "note": 'two\nlines </parameter " é <| 😀'}),
    ("add", {"a": 3, "note": "", "names": ["x", {"y": None}]}),
    ("kind", {"of": "x y"}),
    ("kind", {"of": 'z"'}),
    ("now", {}),
]
WRONG = [
    ("add", {"note": "x"}),
    ("add", {"a": "one"}),
    ("add", {"a": 1, "names": "x"}),
    ("kind", {"of": "z"}),
    ("kind", {}),
    ("other", {}),
]


@cache
def asked(name: str) -> str:
    """The prompt."""
    return render_chat(family_tokenizer(name), [QUESTION], True)


def reply(name: str, called: tuple[str, dict[str, Any]]) -> list[int]:
    """A call as the family's template writes it, up to what ends the reply."""
    tokenizer = family_tokenizer(name)
    written = call(*called, f"functions.{called[0]}:0" if name == "kimi" else "Ab3Cd6Ef9")
    message = {"role": "assistant", "content": "", "tool_calls": [written]}
    text = render_chat(tokenizer, [QUESTION, message], False)
    text = text.removeprefix(asked(name)).lstrip("\n").rstrip()
    text = text.removesuffix("</s>").removesuffix("<|call|>")
    return tokenizer.encode(text, add_special_tokens=False)


def taken(name: str, ids: Sequence[int], tools: Tools = TOOLS) -> tuple[int, bool]:
    """How many of the tokens the grammar takes, and whether the reply may end there."""
    made, grammar = grammar_of(name) if tools is TOOLS else new_grammar_of(name, tools)
    matcher = LLMatcher(made, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens([*ids]), matcher.is_accepting()


@cache
def grammar_of(name: str) -> tuple[LLTokenizer, str]:
    """Of a call of TOOLS."""
    return new_grammar_of(name, TOOLS)


def new_grammar_of(name: str, tools: Tools) -> tuple[LLTokenizer, str]:
    """A family's vocabulary, as llguidance reads it, and the grammar of its calls."""
    tokenizer = family_tokenizer(name)
    made = from_tokenizer(tokenizer, len(tokenizer), tokenizer.eos_token_id)
    special = {str(one): token for token, one in tokenizer.added_tokens_decoder.items() if made.is_special_token(token)}
    form = call_format(FAMILIES[name].template)
    return made, forced_call(call_frame(tokenizer, tools), tools, tools.forced, special, form is HARMONY_CALLS)


@pytest.mark.parametrize("name", FORCED)
@pytest.mark.parametrize("called", RIGHT, ids=str)
def test_what_a_template_writes_is_allowed(name: str, called: tuple[str, dict[str, Any]]) -> None:
    ids = reply(name, called)
    assert taken(name, ids) == (len(ids), True)
    assert taken(name, ids[:-1])[0] == len(ids) - 1 and not taken(name, ids[:-1])[1], "no sooner"


@pytest.mark.parametrize("name", FORCED)
@pytest.mark.parametrize("called", WRONG, ids=str)
def test_what_the_schema_forbids_is_not(name: str, called: tuple[str, dict[str, Any]]) -> None:
    ids = reply(name, called)
    assert taken(name, ids) != (len(ids), True)


@pytest.mark.parametrize("name", FORCED)
def test_text_is_no_call_and_a_named_tool_is_the_only_one(name: str) -> None:
    assert taken(name, family_tokenizer(name).encode("It is"))[0] < 2
    named = Tools.of([ADD, tool("now")], {"type": "function", "function": {"name": "now"}})
    ids = reply(name, ("now", {}))
    assert taken(name, ids, named) == (len(ids), True)
    assert taken(name, reply(name, ("add", {"a": 1})), named)[0] < len(reply(name, ("add", {"a": 1})))


def test_harmony_may_think_before_a_call() -> None:
    tokenizer = family_tokenizer("gpt-oss")
    thoughts = "<|channel|>analysis<|message|>Add\nthem.<|end|><|start|>assistant"
    ids = [*tokenizer.encode(thoughts, add_special_tokens=False), *reply("gpt-oss", ("now", {}))]
    assert taken("gpt-oss", ids) == (len(ids), True)
    final = tokenizer.encode(f"{thoughts}<|channel|>final<|message|>Four.", add_special_tokens=False)
    assert taken("gpt-oss", final)[0] < len(final) - 5


def test_a_schema_may_refer_to_its_definitions() -> None:
    item = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    schema = {"type": "object", "$defs": {"item": item}, "properties": {"list": {"type": "array"}}}
    schema["properties"]["list"]["items"] = {"$ref": "#/$defs/item"}  # type: ignore[index]
    tools = Tools.of([{"type": "function", "function": {"name": "put", "parameters": schema}}], "required")
    for name in ("hermes", "qwen coder"):
        right, wrong = (reply(name, ("put", {"list": [{key: 1}]})) for key in ("x", "y"))
        assert taken(name, right, tools) == (len(right), True)
        assert taken(name, wrong, tools)[0] < len(wrong)


def test_what_cannot_be_forced_is_refused() -> None:
    with pytest.raises(UsageError, match="a call cannot be forced"):
        call_frame(family_tokenizer("gemma"), TOOLS)
    with pytest.raises(UsageError, match="a call cannot be forced"):
        call_frame(family_tokenizer("lfm"), TOOLS)
    silent = FAMILIES["hermes"].template.replace("{{ f.name }}", "")
    with pytest.raises(UsageError, match="a call cannot be forced"):
        call_frame(with_template(byte_level(), silent), TOOLS)
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["x" * 99999]}}}
    tools = Tools.of([{"type": "function", "function": {"name": "big", "parameters": schema}}], "required")
    with pytest.raises(UsageError, match="the parameters of big has"):
        forced_call(call_frame(family_tokenizer("hermes"), tools), tools, tools.forced, {}, False)


@pytest.mark.parametrize("choice", ["auto", None])
def test_a_choice_that_leaves_it_open(choice: object) -> None:
    assert not Tools.of([ADD], choice).forced and Tools.of([ADD], choice)
    assert not Tools.of([ADD], "none")
    assert Tools.of([ADD, KIND], "required").forced == {"add", "kind"}


@pytest.mark.parametrize(
    ("given", "choice", "message"),
    [
        ([ADD], "any", "names a function"),
        ([ADD], 5, "names a function"),
        ([ADD], {"type": "function"}, "names a function"),
        ([ADD], {"type": "function", "function": {"name": "sum"}}, "there is no tool 'sum'"),
        ([], "required", "there are no tools"),
        (None, {"type": "function", "function": {"name": "sum"}}, "there is no tool 'sum'"),
    ],
)
def test_a_choice_that_cannot_be_made(given: Any, choice: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tools.of(given, choice)
    assert json.dumps(str(choice))
