"""Calls are told from text, and what only looks like one is text again; where pieces end makes no difference."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_runtime.errors import UsageError
from offload_runtime.text.detokenize import StopStrings
from offload_runtime.text.reply_text import ReplyText
from offload_runtime.text.tools.call_formats import call_format
from offload_runtime.text.tools.call_splitter import CallSplitter
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools
from tests.samples.tool_templates import FAMILIES, family_tokenizer, tool

TOOLS = Tools.of([tool("add", a="integer"), tool("now")])
ADD = '{"name": "add", "arguments": {"a": 1}}'
ONE, NOW = ToolCall("add", '{"a": 1}'), ToolCall("now", "{}")
CODER = "<function=add>\n<parameter=a>\n1\n</parameter>\n</function>"
QUOTED = '{"name": "add", "arguments": {"a": "</tool_call> \\" <tool_call>"}}'
REPLIES = [  # the family, what is written, the text in it, the calls
    ("hermes", f"<tool_call>\n{ADD}\n</tool_call>", "", [ONE]),
    ("hermes", f"So:\n\n<tool_call>{ADD}</tool_call>", "So:", [ONE]),
    ("hermes", f"<tool_call>{ADD}", "", [ONE]),
    ("hermes", f"<tool_call>{ADD}</tool", f"<tool_call>{ADD}</tool", []),
    ("hermes", f"A <tool_call>{ADD}</tool_call>\n\n<tool_call>{ADD}</tool_call>\n", "A", [ONE, ONE]),
    ("hermes", f"<tool_call>{ADD}</tool_call>\nB\n", "B\n", [ONE]),
    ("hermes", f"A\n<tool_call>{ADD}</tool_call>\nB", "A\n\nB", [ONE]),
    ("hermes", f"<tool_call> is a mark. <tool_call>{ADD}</tool_call>", "<tool_call> is a mark.", [ONE]),
    ("hermes", "<tool_call>{1}</tool_call> B", "<tool_call>{1}</tool_call> B", []),
    ("hermes", "A <tool_call></tool_call>", "A <tool_call></tool_call>", []),
    ("hermes", "A </tool_call> B  ", "A </tool_call> B  ", []),
    ("hermes", f"<tool_call>{QUOTED}</tool_call>", "", [ToolCall("add", QUOTED[29:-1])]),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>', None, []),
    ("hermes", f"<tool_call>{'[' * 99999}</tool_call>", None, []),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": %s}}</tool_call>' % ("9" * 9999), None, []),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ONE]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [ToolCall("other", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": {"a": "x\ny"}}</tool_call>',
        "",
        [ToolCall("add", '{"a": "x\\ny"}')],
    ),
    ("hermes", f"<tool_call>{ADD}\n{ADD}</tool_call>", "", [ONE, ONE]),
    ("qwen coder", f"A\n<tool_call>\n{CODER}\n</tool_call>", "A", [ONE]),
    ("qwen coder", f"<tool_call>{CODER.removesuffix('</function>')}</tool_call>", None, []),
    (
        "qwen coder",
        f"<tool_call>\n{CODER.replace('1', '</tool_call>')}\n</tool_call>",
        "",
        [ToolCall("add", '{"a": "</tool_call>"}')],
    ),
    ("glm", "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "", [ONE]),
    ("glm", "<tool_call>now</tool_call>", "", [NOW]),
    ("glm", "<tool_call>now", "<tool_call>now", []),
    ("glm", "<tool_call>a text\n\nof mine</tool_call>", None, []),
    ("glm", "<tool_call>add<arg_key>a</arg_key></tool_call>", None, []),
    ("llama", '{"name": "add", "parameters": {"a": 1}}', "", [ONE]),
    ("llama", ' {\n "name" : "now", "parameters": {}}\n', "", [NOW]),
    ("llama", '{"type": "function", "name": "now", "parameters": {}}', "", [NOW]),
    ("llama", '{"name": "add", "parameters": {"a": 1}}; {"name": "now", "parameters": {}}', "", [ONE, NOW]),
    ("llama", '{"name": "other", "parameters": {}}', None, []),
    ("llama", 'It is {"name": "now", "parameters": {}}', None, []),
    ("llama", '{"name": "now", "parameters": {}} is it', None, []),
    ("llama", "<|python_tag|>" + '{"name": "now", "parameters": {}}', "", [NOW]),
    ("llama", "<|python_tag|>print(1)", None, []),
    ("mistral 13", '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', "", [ONE, NOW]),
    ("mistral 13", f'A [TOOL_CALLS] [{ADD}, {{"name": "now", "arguments": {{}}}}]', "A", [ONE, NOW]),
    ("mistral 13", '[TOOL_CALLS]add[ARGS]{"a": "[TOOL_CALLS]"}', "", [ToolCall("add", '{"a": "[TOOL_CALLS]"}')]),
    ("mistral 13", "[TOOL_CALLS]add[ARGS]", None, []),
    ("mistral 13", "[TOOL_CALLS]add", None, []),
    ("deepseek 3.1", "<｜tool▁calls▁begin｜>x<｜tool▁calls▁end｜>", None, []),
    ("deepseek 3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}", "", [NOW]),
    ("gemma", '<|tool_call>call:add{a:<|"|>x}<tool_call|>', None, []),
    ("lfm", "<|tool_call_start|>[add(a=1), now()]<|tool_call_end|>", "", [ONE, NOW]),
    ("lfm", "<|tool_call_start|>add(a=1)<|tool_call_end|>B", "B", [ONE]),
    *(
        ("lfm", f"<|tool_call_start|>[{code}]<|tool_call_end|>", None, [])
        for code in (
            "add(1)",
            "add(**{})",
            "add(a=b)",
            "add(a={1})",
            "add(a=1e999)",
            "1",
            "add(a=",
            "\0",
            "add(a=-" + "(" * 999,
        )
    ),
    ("apertus", '<|tools_prefix|>[{"add": {"a": 1}}, {"now": {}}]<|tools_suffix|>', "", [ONE, NOW]),
    ("apertus", '<|tools_prefix|>[{"add": {"a": 1}, "now": {}}]<|tools_suffix|>', None, []),
    ("apertus", "<|tools_prefix|>[]<|tools_suffix|>", None, []),
    ("functionary", '<function=add>{"a": 1}</function><function=now>{}</function>', "", [ONE, NOW]),
    ("functionary", "<function=add>{</function>", None, []),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', None, []),
    ("gemma", '<|tool_call>call:add{a:<|"|>x, y:"z"<|"|>}<tool_call|>', "", [ToolCall("add", '{"a": "x, y:\\"z\\""}')]),
]


def split(name: str, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    splitter = CallSplitter(call_format(FAMILIES[name].template), TOOLS)
    text = "".join([*(splitter.push(piece) for piece in pieces), splitter.finish()])
    return text, splitter.calls


@pytest.mark.parametrize(("name", "written", "text", "calls"), REPLIES)
def test_calls_and_text_however_they_come(name: str, written: str, text: str | None, calls: list[ToolCall]) -> None:
    expected = (written if text is None else text, calls)
    assert split(name, [written]) == expected
    for cut in range(len(written) if len(written) < 500 else 0):
        assert split(name, [written[:cut], written[cut:]]) == expected
    if len(written) < 500:
        assert split(name, list(written)) == expected


_FRAGMENTS = [
    ADD,
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "A",
    "{",
    '"',
    "\\",
    "<",
    "[TOOL_CALLS]",
    "[ARGS]",
    "now",
    "{}",
    CODER,
]
_FRAGMENTS += [
    "<arg_key>a</arg_key>",
    "<arg_value>1",
    "</arg_value>",
    '{"name": "add", "parameters": {}}',
    ";",
    "[",
    "]",
    "<|",
]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([name for name in FAMILIES if name != "gpt-oss"]),
    fragments=st.lists(st.sampled_from(_FRAGMENTS), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_pieces_make_no_difference_and_no_text_is_lost(name: str, fragments: list[str], cuts: list[int]) -> None:
    written = "".join(fragments)
    text, calls = split(name, [written])
    ends = sorted({0, len(written), *(cut for cut in cuts if cut < len(written))})
    assert split(name, [written[a:b] for a, b in pairwise(ends)]) == (text, calls)
    if not calls:
        assert text == written


def test_marks_that_are_tokens_do_not_count_as_text() -> None:
    tokenizer = family_tokenizer("mistral 13")
    text = ReplyText(tokenizer, tools=TOOLS)
    spelled = [token for letter in "[TOOL_CALLS]now[ARGS]{}" for token in tokenizer.encode(letter)]
    pieces = [*(text.push(token) for token in spelled), text.finish()]
    assert "".join(answer for _, answer in pieces) == "[TOOL_CALLS]now[ARGS]{}" and not text.calls


def test_a_malformed_call_behind_a_token_is_text_with_its_marks() -> None:
    for name, written in [("mistral 13", "A [TOOL_CALLS]add[ARGS]{1"), ("phi", "<|tool_call|>x<|/tool_call|> B")]:
        tokenizer = family_tokenizer(name)
        text = ReplyText(tokenizer, tools=TOOLS)
        pieces = [*(text.push(token) for token in tokenizer.encode(written)), text.finish()]
        assert "".join(answer for _, answer in pieces) == written and not text.calls


def test_a_thought_that_a_call_s_token_ends_is_a_thought() -> None:
    tokenizer = family_tokenizer("mistral 13")
    text = ReplyText(tokenizer, tools=TOOLS)
    ids = tokenizer.encode('<think>Add.</thi[TOOL_CALLS]add[ARGS]{"a": "</think>"}')
    pieces = [*(text.push(token) for token in ids), text.finish()]
    assert ("".join(p[0] for p in pieces), "".join(p[1] for p in pieces)) == ("Add.</thi", "")
    assert [*text.calls] == [ToolCall("add", '{"a": "</think>"}')]


def test_what_may_have_become_a_mark_of_thoughts_comes_before_a_call_s_token() -> None:
    tokenizer = family_tokenizer("cohere")
    text = ReplyText(tokenizer, tools=TOOLS)
    ids = tokenizer.encode(f"<|START_RESPONSE|>A <|<|START_ACTION|>[{ADD}]<|END_ACTION|>B")
    pieces = [*(text.push(token) for token in ids), text.finish()]
    assert "".join(answer for _, answer in pieces) == "A <|\n\nB" and [*text.calls] == [ONE]


def test_stop_strings_count_outside_calls_only() -> None:
    tokenizer = family_tokenizer("hermes")
    text = ReplyText(tokenizer, (), StopStrings(["name", "stop"]), tools=TOOLS)
    ids = tokenizer.encode(f"A <tool_call>{ADD}</tool_call> B stop C")
    pieces = [text.push(token) for token in ids]
    assert text.is_stopped and "".join(answer for _, answer in pieces) == "A\n\nB "
    assert [*text.calls] == [ONE]


def test_without_tools_calls_are_text() -> None:
    tokenizer = family_tokenizer("hermes")
    text = ReplyText(tokenizer)
    pieces = [*(text.push(token) for token in tokenizer.encode(f"<tool_call>{ADD}</tool_call>")), text.finish()]
    assert "".join(answer for _, answer in pieces) == f"<tool_call>{ADD}</tool_call>" and not text.calls


def test_a_template_that_teaches_no_known_form_is_refused() -> None:
    with pytest.raises(UsageError, match="no form of tool calls that can be read here"):
        call_format("{{ tools }}{{ messages }}")
