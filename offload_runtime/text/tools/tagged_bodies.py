"""Calls that are written as tags with plain text between them; the tools' schemas say of which types the values are.

Readers as in `json_bodies`.
"""

import re

from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

_PARAMETER_BEGINS = r"<parameter(?:=| name=)"
_FUNCTION = re.compile(r"\s*<(?:function=|invoke name=)\"?([^\">\n]+)\"?>\s*")
_FUNCTION_ENDS = re.compile(r"\s*</(?:function|invoke)>\s*")
_PARAMETER = re.compile(
    rf"\s*{_PARAMETER_BEGINS}\"?([^\">\n]+)\"?>(.*?)</parameter>(?=\s*(?:{_PARAMETER_BEGINS}|</(?:function|invoke)>))",
    re.DOTALL,
)
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def read_functions(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """<function=NAME><parameter=KEY>VALUE</parameter></function>, or <invoke name="NAME"><parameter name="KEY">…."""
    calls, position = [], 0
    while position < len(body):
        begin = _FUNCTION.match(body, position)
        if not begin:
            raise ValueError("no call")
        name, arguments, position = begin[1].strip(), {}, begin.end()
        while parameter := _PARAMETER.match(body, position):
            key, value = parameter[1].strip(), parameter[2].removeprefix("\n").removesuffix("\n")
            arguments[key], position = tools.typed(name, key, value), parameter.end()
        end = _FUNCTION_ENDS.match(body, position)
        if not end:
            raise ValueError("a call without an end")
        calls.append(ToolCall.of(name, arguments))
        position = end.end()
    if not calls:
        raise ValueError("no call")
    return tuple(calls)


def inside_parameter(body: str) -> bool:
    """Whether a beginning of such calls ends inside a value, so that a mark there is a part of it."""
    return body.rfind("<parameter") > body.rfind("</parameter>")


def read_pairs(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…: GLM 4.5 and later."""
    name, found, pairs = body.partition("<arg_key>")
    name, rest, arguments = name.strip(), found + pairs, {}
    if not name or any(sign in name for sign in "<>{\n"):
        raise ValueError("no call")
    position = 0
    while position < len(rest):
        pair = _PAIR.match(rest, position)
        if not pair:
            raise ValueError("an argument without a value")
        arguments[pair[1].strip()], position = tools.typed(name, pair[1].strip(), pair[2]), pair.end()
    return (ToolCall.of(name, arguments),)


def inside_value(body: str) -> bool:
    """As `inside_parameter`."""
    return body.rfind("<arg_value>") > body.rfind("</arg_value>")
