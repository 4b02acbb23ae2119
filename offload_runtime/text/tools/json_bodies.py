"""Calls that are written as JSON alone.

Readers take the text between a family's marks and return its calls; they raise ValueError for what are none.
"""

import re
from typing import Any

from offload_runtime.text.tools.tool_call import ToolCall, json_values
from offload_runtime.text.tools.tool_definitions import Tools

_NAMES, _ARGUMENTS = ("name", "tool_name", "function"), ("arguments", "parameters")
_ESCAPED = re.compile(r"\\.", re.DOTALL)


def inside_string(body: str) -> bool:
    """Whether a beginning of JSON ends inside a string, so that a mark there is a part of it."""
    return _ESCAPED.sub("", body).count('"') % 2 == 1


def read_json(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """{"name": ..., "arguments" or "parameters": {...}}, several of them, or a list of them."""
    return tuple(map(_call, _objects(body)))


def read_keyed(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """A list of {NAME: {...}}: Apertus."""
    objects = _objects(body)
    if not all(isinstance(one, dict) and len(one) == 1 for one in objects):
        raise ValueError("no call")
    return tuple(ToolCall.of(*pair) for one in objects for pair in one.items())


def _objects(body: str) -> list[Any]:
    """The values in a body, or of the list that it is; at least one."""
    values = [*json_values(body, ";,")]
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not values:
        raise ValueError("no call")
    return values


def _call(value: object) -> ToolCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value["function"], "id": value.get("id")}
    if not isinstance(value, dict):
        raise ValueError("no call")
    name = next((value[key] for key in _NAMES if key in value), None)
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    return ToolCall.of(name, {} if arguments is None else arguments, value.get("id"))
