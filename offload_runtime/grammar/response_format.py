"""Reads a response format, given as in OpenAI's interface, into the JSON schema that a reply must follow."""

import json
from collections.abc import Mapping
from typing import Any

from loaders.message_text import quoted
from offload_runtime.errors import UsageError

MOST_BYTES = 1 << 16  # of a schema, as JSON; a schema of 3,000 properties compiles in half a second
MOST_LEVELS = 64  # of values within values; llguidance itself stops at 128
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# White space is a space or an indented new line, as writers of JSON put it: in free white space weak models get lost.
JSON_OPTIONS = {"whitespace_pattern": r"( |\r?\n[ \t]{0,40})"}
BEFORE = r"/ |(\r?\n){1,2}/"  # what tokenizers and templates like to put before a reply
_KINDS = 'None, {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {…}}}'


def grammar_of(given: object, call: int | None = None) -> str | None:
    """The grammar, in llguidance's variant of Lark, of a response format; None if any text will do.

    call: a token that may come in place of the answer, and then anything. A schema is always followed strictly. Raises
    UsageError for what is no response format, and for schemas that are too large or too deep.
    """
    schema = _schema(given)
    if schema is None:
        return None
    text = json.dumps({**schema, "x-guidance": JSON_OPTIONS})  # its own options, and none of the caller's
    grammar = f"start: BEFORE? reply\nanswer: %json {text}\nBEFORE: {BEFORE}\n"
    return grammar + ("reply: answer\n" if call is None else f"reply: answer | <[{call}]> <[*]>*\n")


def _schema(given: object) -> Mapping[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise _wrong(given)
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    inner = given.get("json_schema")
    if kind != "json_schema" or not isinstance(inner, Mapping):
        raise _wrong(given)
    schema = inner.get("schema")
    if not isinstance(schema, Mapping):
        raise UsageError(f"response_format: json_schema needs its schema, an object, not {quoted(schema)}")
    check_schema(schema, "response_format: the schema")
    return schema


def _wrong(given: object) -> UsageError:
    return UsageError(f"response_format must be {_KINDS}, not {quoted(given)}")


def check_schema(schema: Mapping[str, Any], name: str) -> None:
    """Raises UsageError for a schema that is too large or deep, or holds values that JSON does not have.

    name: of the schema in messages.
    """
    level: list[Any] = [schema]
    for _ in range(MOST_LEVELS):
        inner = [value.values() if isinstance(value, Mapping) else value for value in level if _has_values(value)]
        level = [value for values in inner for value in values]
        if not level:
            break
    else:
        raise UsageError(f"{name} is nested more than {MOST_LEVELS} levels deep")
    try:
        nbytes = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is not JSON: {quoted(str(error), 200)}") from error
    if nbytes > MOST_BYTES:
        raise UsageError(f"{name} has {nbytes:,} bytes, more than {MOST_BYTES:,}")


def _has_values(value: object) -> bool:
    return isinstance(value, (Mapping, list, tuple))
