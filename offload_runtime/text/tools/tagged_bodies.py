"""Calls that are written as tags with plain text between them; the tools' schemas say of which types the values are.

Readers as in `json_bodies`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offload_runtime.text.tools.tool_call import ToolCall, json_value
from offload_runtime.text.tools.tool_definitions import Tools

Value = Callable[[Tools, str, "re.Match[str]"], Any]  # of a parameter, whose key is group 1


@dataclass(frozen=True)
class _Tags:
    """What begins a function (its name is group 1), is a parameter, and ends a function."""

    begin: "re.Pattern[str]"
    parameter: "re.Pattern[str]"
    end: "re.Pattern[str]"

    def read(self, body: str, tools: Tools, value: Value) -> tuple[ToolCall, ...]:
        """The calls that a text consists of."""
        calls, position = [], 0
        while position < len(body):
            begin = self.begin.match(body, position)
            if not begin:
                raise ValueError("no call")
            name, arguments, position = begin[1].strip(), {}, begin.end()
            while parameter := self.parameter.match(body, position):
                arguments[parameter[1].strip()], position = value(tools, name, parameter), parameter.end()
            end = self.end.match(body, position)
            if not end:
                raise ValueError("a call without an end")
            calls.append(ToolCall.of(name, arguments))
            position = end.end()
        if not calls:
            raise ValueError("no call")
        return tuple(calls)


# A value ends where another parameter or the function's end follows, so that it may contain its own end.
_FUNCTIONS = _Tags(
    re.compile(r"\s*<(?:function=|invoke name=)\"?([^\">\n]+)\"?>\s*"),
    re.compile(
        r"\s*<parameter(?:=| name=)\"?([^\">\n]+)\"?>(.*?)</parameter>"
        r"(?=\s*(?:<parameter(?:=| name=)|</(?:function|invoke)>))",
        re.DOTALL,
    ),
    re.compile(r"\s*</(?:function|invoke)>\s*"),
)
_DSML = _Tags(
    re.compile(r'\s*<｜DSML｜invoke name="([^">\n]+)">\s*'),
    re.compile(
        r'\s*<｜DSML｜parameter name="([^">\n]+)" string="(true|false)">(.*?)</｜DSML｜parameter>'
        r"(?=\s*(?:<｜DSML｜parameter name=|</｜DSML｜invoke>))",
        re.DOTALL,
    ),
    re.compile(r"\s*</｜DSML｜invoke>\s*"),
)
_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def read_functions(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """<function=NAME><parameter=KEY>VALUE</parameter></function>, or <invoke name="NAME"><parameter name="KEY">…."""
    return _FUNCTIONS.read(body, tools, _by_schema)


def inside_parameter(body: str) -> bool:
    """Whether a beginning of such calls ends inside a value, so that a mark there is a part of it."""
    return body.rfind("<parameter") > body.rfind("</parameter>")


def read_dsml(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """The same with DeepSeek's tags; each value says whether it is text, and is JSON otherwise."""
    return _DSML.read(body, tools, _as_stated)


def inside_dsml(body: str) -> bool:
    """As `inside_parameter`."""
    return body.rfind("<｜DSML｜parameter") > body.rfind("</｜DSML｜parameter>")


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


def _by_schema(tools: Tools, name: str, parameter: "re.Match[str]") -> Any:
    return tools.typed(name, parameter[1].strip(), parameter[2].removeprefix("\n").removesuffix("\n"))


def _as_stated(tools: Tools, name: str, parameter: "re.Match[str]") -> Any:
    if parameter[2] == "false":
        return json_value(parameter[3])
    return tools.typed(name, parameter[1].strip(), parameter[3], text_unless_stated=True)
