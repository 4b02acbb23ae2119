"""Tools, calls and their results reach the template in the form that it expects, or it is said that it has none."""

import json
from pathlib import Path
from typing import Any

import pytest

from offload_runtime.errors import PromptError, UsageError
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.prompt import chat_tokenizer, encode_prompt
from offload_runtime.text.reply_text import ReplyText
from offload_runtime.text.tools.tool_definitions import Tools
from tests.samples.tokenizer_samples import TEMPLATE, byte_level, with_template
from tests.samples.tool_templates import FAMILIES, call, family_tokenizer, tool

TOOLS = Tools.of([tool("add", a="integer"), tool("now")])
QUESTION = {"role": "user", "content": "what is it?"}
CALL = call("add", {"a": 1, "b": ["é"]})
ASKED = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [*ASKED, {"role": "tool", "tool_call_id": CALL["id"], "content": "seven"}]
PARTS = (
    "{{ tools | tojson }}{% for m in messages %}<|{{ m.role }}|>{% for c in m.content %}{{ c['text'] }}{% endfor %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}</s>{% endfor %}"
)


def as_text(message: dict[str, Any]) -> dict[str, Any]:
    """With the arguments of calls as JSON text, as clients send them."""
    calls = [
        {**one, "function": {**one["function"], "arguments": json.dumps(one["function"]["arguments"])}}
        for one in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rendering_is_that_of_transformers(name: str) -> None:
    tokenizer = family_tokenizer(name)
    rendered = render_chat(tokenizer, [as_text(one) for one in ANSWERED], True, tools=TOOLS)
    given = [{**one, "content": one["content"] or ""} for one in ANSWERED]
    if name.startswith("deepseek"):
        given = [as_text(one) for one in given]
        rendered = rendered.replace("é", "\\u00e9")
    expected = tokenizer.apply_chat_template(
        given, tools=[*TOOLS.definitions], tokenize=False, add_generation_prompt=True
    )
    assert rendered == expected and "seven" in rendered


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_a_result_become_text(name: str) -> None:
    parts = [{"type": "text", "text": "se"}, {"type": "text", "text": "ven"}]
    whole = render_chat(family_tokenizer(name), [*ASKED, {**ANSWERED[-1], "content": parts}], True, tools=TOOLS)
    assert "se\nven" in whole or "se\\nven" in whole


def test_a_template_that_walks_through_parts_gets_parts() -> None:
    tokenizer = with_template(byte_level(), PARTS)
    rendered = render_chat(tokenizer, ANSWERED, True, tools=TOOLS)
    written = json.dumps(CALL["function"], ensure_ascii=False)
    assert rendered.endswith(f"?</s><|assistant|><tool_call>{written}</tool_call></s><|tool|>seven</s>")


def test_arguments_that_a_template_would_print_as_python_has_them_are_given_as_text() -> None:
    prints = TEMPLATE.replace(
        "{{ eos_token }}", "{% for c in message.tool_calls or [] %}({{ c.function.arguments }}){% endfor %}{{ tools }}"
    )
    assert '({"a": 1, "b": ["é"]})' in render_chat(with_template(byte_level(), prints), ASKED, True, tools=TOOLS)


def test_ids_of_other_models_have_nine_characters_where_the_template_wants_it() -> None:
    both = [
        {**ASKED[1], "tool_calls": [call("add", {}, "call_0123456789"), call("now", {}, "toolu_99")]},
        {"role": "tool", "tool_call_id": "toolu_99", "content": "noon"},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "seven"},
    ]
    template = FAMILIES["mistral 3"].template.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_call_id }}")
    rendered = render_chat(with_template(byte_level(), template), [QUESTION, *both], True)
    ids = [one.partition('"')[0] for one in rendered.split('"id": "')[1:]]
    assert all(len(one) == 9 and one.isalnum() for one in ids) and ids[0] != ids[1]
    assert rendered.index(f"noon{ids[1]}") < rendered.index(f"seven{ids[0]}")
    assert "Ab3Cd6Ef9" in render_chat(with_template(byte_level(), template), ANSWERED, True)
    assert "call_0123456789" in render_chat(family_tokenizer("mistral 11"), [QUESTION, *both], True)


@pytest.mark.parametrize("name", ["llama", "gpt-oss"])
def test_calls_come_one_by_one_where_a_message_has_room_for_one(name: str) -> None:
    calls = [call("add", {"a": 1}, "one"), call("now", {}, "two")]
    results = [{"role": "tool", "tool_call_id": "two", "content": "noon"}]
    results.append({"role": "tool", "tool_call_id": "one", "content": "seven"})
    messages = [QUESTION, {"role": "assistant", "content": "Both.", "tool_calls": calls}, *results, QUESTION]
    rendered = render_chat(family_tokenizer(name), messages, True, tools=TOOLS)
    after = rendered.partition("Both.")[2]
    order = [after.index(text) for text in ('{"a": 1}', "seven", "now", "noon", QUESTION["content"])]
    assert order == sorted(order) and after.count("noon") == after.count("seven") == 1
    if name == "gpt-oss":
        assert 'functions.add to=assistant<|channel|>commentary<|message|>"seven"' in after
        assert 'functions.now to=assistant<|channel|>commentary<|message|>"noon"' in after


def test_text_beside_thoughts_and_a_call_is_among_the_thoughts_where_a_template_takes_one_of_them() -> None:
    message = {**ASKED[1], "content": "I add.", "reasoning_content": "Add them."}
    rendered = render_chat(family_tokenizer("gpt-oss"), [QUESTION, message], True)
    assert "<|channel|>analysis<|message|>Add them.\n\nI add.<|end|>" in rendered
    rendered = render_chat(family_tokenizer("hermes"), [QUESTION, message], True)
    assert "<think>\nAdd them.\n</think>\n\nI add." in rendered


def test_a_result_has_the_name_of_its_tool() -> None:
    template = TEMPLATE.replace("{{ eos_token }}", "{{ message.name }}{{ (message.tool_calls or []) | tojson }}")
    assert "sevenadd[]" in render_chat(with_template(byte_level(), template), ANSWERED, True)
    named = [*ASKED, {**ANSWERED[-1], "name": "sum"}]
    assert "sevensum[]" in render_chat(with_template(byte_level(), template), named, True)


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("hermes")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(str(tokenizer.chat_template))
    loaded = chat_tokenizer(tmp_path, None)
    assert render_chat(loaded, [QUESTION], True) == render_chat(byte_level(), [QUESTION], True)
    assert render_chat(loaded, [QUESTION], True, tools=TOOLS) == render_chat(tokenizer, [QUESTION], True, tools=TOOLS)
    text = ReplyText(loaded, (), tools=TOOLS)
    for token in loaded.encode('<tool_call>{"name": "now"}</tool_call>'):
        text.push(token)
    assert text.finish() == ("", "") and len(text.calls) == 1
    with pytest.raises(UsageError, match="no place for tools"):
        render_chat(chat_tokenizer(tmp_path, tmp_path / "chat_template.jinja"), [QUESTION], True, tools=TOOLS)


def test_a_template_that_is_only_for_tools_is_not_tried_without() -> None:
    only = FAMILIES["hermes"].template.replace("{% if tools %}", "{% for tool in tools %}{% endfor %}{% if true %}")
    tokenizer = with_template(byte_level(), only)
    assert '"name": "now"' in render_chat(tokenizer, ANSWERED, True, tools=TOOLS)


def test_calls_are_in_the_text_where_a_template_has_a_place_for_results_alone() -> None:
    bare = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{% if tools %}<|tool_call|>{{ tools }}{% endif %}")
    tokenizer = with_template(byte_level(), bare)
    asked = {**ASKED[1], "content": "I add."}
    rendered = render_chat(tokenizer, [QUESTION, asked, ANSWERED[-1]], True, tools=TOOLS)
    written = json.dumps([CALL["function"]], ensure_ascii=False)
    assert f"<|assistant|>\nI add.\n<|tool_call|>{written}</s>\n<|tool|>\nseven</s>" in rendered


def test_a_tool_may_speak_of_parts() -> None:
    part = tool("part", type="text")
    part["function"]["description"] = '"type": "text" and {\'type\': \'text\', "text": "x"}'
    assert "seven" in render_chat(family_tokenizer("hermes"), ANSWERED, True, tools=Tools.of([part]))


def test_a_template_without_a_place_for_tools_is_said_to_have_none() -> None:
    with pytest.raises(UsageError, match="no place for tools"):
        render_chat(byte_level(), [QUESTION], True, tools=TOOLS)
    with pytest.raises(UsageError, match="no place for tools"):
        encode_prompt([QUESTION], byte_level, tools=TOOLS)
    assert encode_prompt([QUESTION], lambda: family_tokenizer("hermes"), tools=TOOLS)


@pytest.mark.parametrize("messages", [ASKED, ANSWERED])
def test_a_template_without_a_place_for_calls_is_said_to_have_none(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="no place for calls of tools"):
        render_chat(byte_level(), messages, True)
    without_results = FAMILIES["hermes"].template.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}")
    if messages is ANSWERED:
        with pytest.raises(UsageError, match="no place for calls of tools"):
            render_chat(with_template(byte_level(), without_results), messages, True)


@pytest.mark.parametrize(
    "calls",
    [
        5,
        "add",
        ["add"],
        [{"id": "a"}],
        [{"function": {"arguments": "{}"}}],
        [{"function": {"name": "add", "arguments": "{"}}],
        [{"function": {"name": "add", "arguments": "[1]"}}],
        [{"function": {"name": "add", "arguments": [1]}}],
        [{"id": 5, "function": {"name": "add"}}],
        [{"function": {"name": "add", "arguments": "[" * 99999}}],
    ],
)
def test_what_is_no_call_is_refused(calls: Any) -> None:
    with pytest.raises(PromptError, match='"tool_calls" of a message'):
        render_chat(family_tokenizer("hermes"), [QUESTION, {**ASKED[1], "tool_calls": calls}], True)


@pytest.mark.parametrize("result", [{"tool_call_id": 5}, {"name": ["a"]}])
def test_what_a_result_refers_to_is_text(result: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match='"tool_call_id" and "name"'):
        render_chat(family_tokenizer("hermes"), [*ASKED, {"role": "tool", "content": "x", **result}], True)


def test_a_message_of_an_assistant_without_calls_has_content() -> None:
    for nothing in (None, []):
        with pytest.raises(PromptError, match='"role" and "content"'):
            render_chat(family_tokenizer("hermes"), [QUESTION, {**ASKED[1], "tool_calls": nothing}], True)
