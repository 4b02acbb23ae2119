"""Calls whose names and arguments, which are JSON, stand in a family's own frame.

Readers as in `json_bodies`.
"""

import re
from collections.abc import Iterator

from offload_runtime.text.tools.json_bodies import read_json
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_MISTRAL = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\s*([^\s\[]+)\s*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)
_GEMMA = re.compile(r"\s*call:([^\s{]+)\s*(\{.*\})\s*", re.DOTALL)
HARMONY_NAMESPACE = "functions."
_GEMMA_QUOTE = '<|"|>'
_BARE_KEY = re.compile(r"([{,]\s*)([\w.-]+)(\s*:)")


def read_function(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """NAME>{...}: Functionary 3.1."""
    name, _, arguments = body.partition(">")
    return (ToolCall.of(name, arguments),)


def read_solar(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """ID, a mark, NAME, a mark, {...}."""
    call_id, _, rest = body.partition("<|tool_call:name|>")
    name, _, arguments = rest.partition("<|tool_call:args|>")
    return (ToolCall.of(name, arguments, call_id.strip()),)


def read_mistral(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """A list as above; from version 11 on NAME[CALL_ID]ID[ARGS]{...}, from 13 on without an id."""
    if body.lstrip().startswith(("[{", "{", "[ ", "[\n")):
        return read_json(body, tools)
    found = _MISTRAL.fullmatch(body)
    if not found:
        raise ValueError("no call")
    name, call_id, arguments = found.groups()
    return (ToolCall.of(name, arguments, call_id),)


def read_deepseek(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """V3.1 and later: NAME, a mark, {...}; V3 and R1: "function", a mark, NAME, a line break, fenced JSON."""
    calls = []
    for item in _items(body, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"):
        name, _, arguments = item.partition("<｜tool▁sep｜>")
        if name.strip() == "function":
            name, _, arguments = arguments.partition("\n")
        fenced = _FENCED.fullmatch(arguments)
        calls.append(ToolCall.of(name, fenced[1] if fenced else arguments))
    return tuple(calls)


def read_kimi(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """functions.NAME:NUMBER, which is the call's id too, a mark, {...}."""
    calls = []
    for item in _items(body, "<|tool_call_begin|>", "<|tool_call_end|>"):
        call_id, _, arguments = item.partition("<|tool_call_argument_begin|>")
        name = call_id.strip().removeprefix("functions.").rpartition(":")[0]
        calls.append(ToolCall.of(name, arguments, call_id.strip()))
    return tuple(calls)


def read_gemma(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """call:NAME{key:value, ...}: JSON with bare keys and quotes of its own."""
    found = _GEMMA.fullmatch(body)
    if not found:
        raise ValueError("no call")
    pieces = found[2].split(_GEMMA_QUOTE)
    if len(pieces) % 2 == 0:
        raise ValueError("a text without an end")
    outside = [_BARE_KEY.sub(r'\1"\2"\3', piece) for piece in pieces[::2]]
    texts = [_quoted(piece) for piece in pieces[1::2]]
    return (ToolCall.of(found[1], "".join(part for pair in zip(outside, [*texts, ""]) for part in pair)),)


def inside_gemma_text(body: str) -> bool:
    """As `inside_string`, for Gemma's quotes."""
    return body.count(_GEMMA_QUOTE) % 2 == 1


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _items(body: str, begin: str, end: str) -> Iterator[str]:
    before, *items = body.split(begin)
    if before.strip() or not items:
        raise ValueError("no call")
    for item in items:
        content, found, after = item.rpartition(end)
        if after.strip() and found:
            raise ValueError("text between calls")
        yield content if found else item


def harmony_call(header: str, body: str) -> ToolCall:
    """The call that a harmony message is: its header names the recipient. Raises ValueError."""
    recipient = header.rpartition(" to=")[2].split("<|")[0].split()[:1]
    return ToolCall.of("".join(recipient).removeprefix(HARMONY_NAMESPACE), body)
