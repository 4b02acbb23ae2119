"""The messages of a chat request, as chat templates take them."""

from collections.abc import Iterator, Mapping
from typing import Any

from offload_runtime.serve.api.fields import LONGEST_NAME, Fields, bad, shown
from offload_runtime.text.message_forms import OTHER_PARTS
from offload_runtime.text.tools.tool_call import json_value

MOST_MESSAGES = 1 << 13
MOST_PARTS = 1 << 10  # of one message
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MORE = {"assistant": ("name", "reasoning_content"), "tool": ("name", "tool_call_id")}


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages of the field "messages", checked. Raises ApiError that names the message and the part."""
    return [_read_message(message) for message in each_message(fields)]


def each_message(fields: Fields) -> Iterator[Fields]:
    """The fields of every message."""
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise bad("messages", f"must be a list of messages, not {'an empty one' if given == [] else shown(given)}")
    if len(given) > MOST_MESSAGES:
        raise bad("messages", f"there are {len(given)}; at most {MOST_MESSAGES} are taken")
    for number, message in enumerate(given):
        yield Fields.of(message, f"messages[{number}]")


def each_part(content: object, path: str, parts: str) -> Iterator[Fields]:
    """The fields of every part of a message's content, in a form that calls them `parts`."""
    if not isinstance(content, list):
        raise bad(path, f"must be text or a list of {parts}, not {shown(content)}")
    if len(content) > MOST_PARTS:
        raise bad(path, f"has {len(content)} {parts}; at most {MOST_PARTS} are taken")
    for number, part in enumerate(content):
        yield Fields.of(part, f"{path}[{number}]")


def _read_message(fields: Fields) -> dict[str, Any]:
    """One message, with its content as one text."""
    role = fields.choice("role", ROLES)
    content, calls = fields.take("content"), _read_calls(fields) if role == "assistant" else None
    text = "" if content is None and calls else _read_content(content, fields.path("content"))
    found: dict[str, Any] = {"role": ROLES[role], "content": text}
    for name in _MORE.get(role, ("name",)):
        if (value := fields.text(name)) is not None:
            found[name] = value
    fields.only("annotations", [])  # as a reply may come back
    fields.finish()
    return {**found, "tool_calls": calls} if calls else found


def _read_calls(fields: Fields) -> list[dict[str, Any]]:
    """The calls of tools in an assistant's message."""
    given, path = fields.take("tool_calls"), fields.path("tool_calls")
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > MOST_PARTS:
        raise bad(path, f"must be a list of at most {MOST_PARTS} calls, not {shown(given)}")
    return [_read_call(Fields.of(call, f"{path}[{number}]")) for number, call in enumerate(given)]


def _read_call(fields: Fields) -> dict[str, Any]:
    fields.only("type", "function")
    call_id, function = fields.text("id", LONGEST_NAME) or "", fields.mapping("function")
    fields.ignore("index")
    fields.finish()
    inner = Fields(function or {}, fields.path("function"))
    name, arguments = inner.needed("name", LONGEST_NAME), inner.take("arguments")
    inner.finish()
    try:
        read = json_value(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise bad(inner.path("arguments"), f"must be JSON of an object, as text, not {shown(arguments)}")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": read}}


def _read_content(content: object, path: str) -> str:
    """A text, or the texts of a list of parts, a line each."""
    if isinstance(content, str):
        return content
    return "\n".join(text_of(part, kind_of(part, OTHER_PARTS)) for part in each_part(content, path, "parts"))


def kind_of(part: Fields, others: Mapping[str, str]) -> str | None:
    """The type of a part. Raises ApiError for one of `others`, which are known and cannot be read."""
    kind = part.text("type")
    if kind is not None and kind in others:
        what = f"{kind} is not supported: this model reads text, no {others[kind]}"
        raise bad(part.path("type"), what, "unsupported_part")
    return kind


def text_of(part: Fields, kind: str | None) -> str:
    """The text of a part of this type. Raises ApiError if that is not text."""
    if kind != "text":
        raise bad(part.path("type"), f"must be text, not {shown(kind)}")
    text = part.needed("text")
    part.finish()
    return text
