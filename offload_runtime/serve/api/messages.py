"""The messages of a chat request, as chat templates take them."""

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
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise bad("messages", f"must be a list of messages, not {'an empty one' if given == [] else shown(given)}")
    if len(given) > MOST_MESSAGES:
        raise bad("messages", f"there are {len(given)}; at most {MOST_MESSAGES} are taken")
    return [read_message(message, f"messages[{number}]") for number, message in enumerate(given)]


def read_message(message: object, path: str) -> dict[str, Any]:
    """One message, with its content as one text."""
    if not isinstance(message, dict):
        raise bad(path, f"must be an object, not {shown(message)}")
    fields = Fields(message, path)
    role = fields.text("role")
    if role not in ROLES:
        raise bad(f"{path}.role", f"must be {', '.join(ROLES)}, not {shown(role)}")
    content, calls = fields.take("content"), _read_calls(fields) if role == "assistant" else None
    text = "" if content is None and calls else read_content(content, f"{path}.content")
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
    return [_read_call(call, f"{path}[{number}]") for number, call in enumerate(given)]


def _read_call(call: object, path: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise bad(path, f"must be an object, not {shown(call)}")
    fields = Fields(call, path)
    fields.only("type", "function")
    call_id, function = fields.text("id", LONGEST_NAME) or "", fields.mapping("function")
    fields.ignore("index")
    fields.finish()
    inner = Fields(function or {}, f"{path}.function")
    name, arguments = inner.text("name", LONGEST_NAME), inner.take("arguments")
    inner.finish()
    if name is None:
        raise bad(f"{path}.function.name", "is missing")
    try:
        read = json_value(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise bad(f"{path}.function.arguments", f"must be JSON of an object, as text, not {shown(arguments)}")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": read}}


def read_content(content: object, path: str) -> str:
    """A text, or the texts of a list of parts, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad(path, f"must be text or a list of parts, not {shown(content)}")
    if len(content) > MOST_PARTS:
        raise bad(path, f"has {len(content)} parts; at most {MOST_PARTS} are taken")
    return "\n".join(_read_part(part, f"{path}[{number}]") for number, part in enumerate(content))


def _read_part(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise bad(path, f"must be an object, not {shown(part)}")
    fields = Fields(part, path)
    kind = fields.text("type")
    if kind in OTHER_PARTS:
        raise bad(
            f"{path}.type",
            f"{kind} is not supported: this model reads text, no {OTHER_PARTS[kind]}",
            "unsupported_part",
        )
    if kind != "text":
        raise bad(f"{path}.type", f"must be text, not {shown(kind)}")
    text = fields.text("text")
    if text is None:
        raise bad(f"{path}.text", "is missing")
    fields.finish()
    return text
