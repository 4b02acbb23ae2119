"""Definitions of tools are checked by name, and their types decide how plain text is read."""

from typing import Any

import pytest

from offload_runtime.errors import UsageError
from offload_runtime.text.tools.tool_definitions import Tools
from tests.samples.tool_templates import tool


def test_what_a_caller_leaves_out_is_filled_in() -> None:
    tools = Tools.of([{"type": "function", "function": {"name": "now", "strict": True, "parameters": None}}])
    empty = {"type": "object", "properties": {}}
    function = {"name": "now", "description": "", "parameters": empty, "strict": True}
    assert tools.definitions == ({"type": "function", "function": function},)
    assert tools and tools.names == {"now"} and tools.parameters("now") == empty and tools.parameters("other") == {}
    assert not Tools.of(None) and not Tools.of([])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("add", "a list of definitions"),
        ({"a": 1}, "a list of definitions"),
        ([5], r"tools\[0\]: only tools"),
        ([{"type": "web_search"}], "not 'web_search'"),
        ([{"type": "function"}], '"function" is a mapping'),
        ([{"type": "function", "function": {"name": "a b"}}], "letters, digits"),
        ([{"type": "function", "function": {"name": "a" * 129}}], "at most 128"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "parameters of a are a JSON schema"),
        ([{"type": "function", "function": {"name": "a", "description": 5}}], "description of a is text"),
        ([{"type": "function", "function": {"name": "a", "x": float("nan")}}], "not JSON"),
        ([{"type": "function", "function": {"name": "a", "x": object()}}], "not JSON"),
        ([tool("a"), tool("a")], "same name"),
    ],
)
def test_what_is_no_definition_is_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tools.of(given)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, '"5"', '"5"'),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "integer"}, "true", "true"),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, " True\n", True),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "array"}, "[1, 2]", [1, 2]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
        ({}, "5", "5"),
        ({}, '{"a": 1}', {"a": 1}),
        (True, "x", "x"),
    ],
)
def test_text_is_read_as_the_type_of_the_schema(schema: Any, text: str, value: Any) -> None:
    tools = Tools.of([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}])
    found = tools.typed("f", "a", text)
    assert found == value and type(found) is type(value)
    assert tools.typed("other", "a", "5") == "5"


def test_parameters_without_properties() -> None:
    tools = Tools.of([{"type": "function", "function": {"name": "f", "parameters": {"properties": None}}}])
    assert tools.typed("f", "a", "5") == "5"
