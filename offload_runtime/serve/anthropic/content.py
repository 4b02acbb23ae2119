"""The messages of Anthropic's form, with their blocks of content, as chat templates take them."""

from collections.abc import Iterable
from typing import Any

from offload_runtime.serve.api.fields import Fields, bad, shown
from offload_runtime.serve.api.messages import MOST_MESSAGES, MOST_PARTS

LONGEST_ID = 256  # characters
_OTHER_BLOCKS = {
    "image": "images",
    "document": "documents",
    "search_result": "search results",
    "redacted_thinking": "thoughts that only another server can read",
    "container_upload": "files",
}
_ROLES = ("user", "assistant", "system")


def read_system(fields: Fields) -> list[dict[str, Any]]:
    """The system message, if there is one: a text, or blocks of text."""
    given = fields.take("system")
    text = "" if given is None else _text_of(given, "system")
    return [{"role": "system", "content": text}] if text else []


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages of the field "messages". Raises ApiError that names the message and the block at fault.

    Messages in a row of one role count as one, as Anthropic takes them, except for results of tools, which become
    messages of their own.
    """
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise bad("messages", f"must be a list of messages, not {'an empty one' if given == [] else shown(given)}")
    if len(given) > MOST_MESSAGES:
        raise bad("messages", f"there are {len(given)}; at most {MOST_MESSAGES} are taken")
    found: list[dict[str, Any]] = []
    for number, message in enumerate(given):
        for one in _read_message(message, f"messages[{number}]"):
            _add(found, one)
    if found[-1]["role"] == "assistant":
        raise bad(
            "messages",
            "the last message must be the user's: this server does not continue a reply that a request begins",
            "unsupported_value",
        )
    return found


def _add(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    last: dict[str, Any] = messages[-1] if messages else {}
    if message["role"] == "tool" or last.get("role") != message["role"]:
        messages.append(message)
        return
    for key in ("content", "reasoning_content"):
        if parts := [one[key] for one in (last, message) if one.get(key)]:
            last[key] = "\n".join(parts)
    if calls := [*last.get("tool_calls", ()), *message.get("tool_calls", ())]:
        last["tool_calls"] = calls


def _read_message(message: object, path: str) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise bad(path, f"must be an object, not {shown(message)}")
    fields = Fields(message, path)
    role, content = fields.text("role"), fields.take("content")
    if role not in _ROLES:
        raise bad(f"{path}.role", f"must be {', '.join(_ROLES)}, not {shown(role)}")
    fields.finish()
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = [*_blocks(content, f"{path}.content")]
    if role == "system":
        return [{"role": role, "content": "\n".join(_text_block(*block) for block in blocks)}]
    return _of_assistant(blocks) if role == "assistant" else _of_user(blocks)


def _blocks(content: object, path: str) -> Iterable[tuple[str, Fields, str]]:
    """Each block's type, its fields, and its path."""
    if not isinstance(content, list):
        raise bad(path, f"must be text or a list of blocks, not {shown(content)}")
    if len(content) > MOST_PARTS:
        raise bad(path, f"has {len(content)} blocks; at most {MOST_PARTS} are taken")
    for number, block in enumerate(content):
        within = f"{path}[{number}]"
        if not isinstance(block, dict):
            raise bad(within, f"must be an object, not {shown(block)}")
        fields = Fields(block, within)
        kind = fields.text("type")
        if kind in _OTHER_BLOCKS:
            what = f"{kind} is not supported: this model reads text, no {_OTHER_BLOCKS[kind]}"
            raise bad(f"{within}.type", what, "unsupported_part")
        fields.ignore("cache_control", "citations")
        yield str(kind), fields, within


def _text_of(content: object, path: str) -> str:
    """A text, or the texts of a list of blocks, a line each."""
    if isinstance(content, str):
        return content
    return "\n".join(_text_block(kind, fields, within) for kind, fields, within in _blocks(content, path))


def _text_block(kind: str, fields: Fields, path: str) -> str:
    if kind != "text":
        raise bad(f"{path}.type", f"must be text, not {shown(kind)}")
    return _needed(fields, "text", path, finish=True)


def _of_user(blocks: list[tuple[str, Fields, str]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for kind, fields, path in blocks:
        if kind != "tool_result":
            texts.append(_text_block(kind, fields, path))
            continue
        call_id, content = _needed(fields, "tool_use_id", path, LONGEST_ID), fields.take("content")
        text = "" if content is None else _text_of(content, f"{path}.content")
        failed = fields.flag("is_error")
        fields.finish()
        results.append({"role": "tool", "tool_call_id": call_id, "content": text or ("error" if failed else "")})
    asked = [{"role": "user", "content": "\n".join(texts)}] if texts or not results else []
    return [*results, *asked]


def _of_assistant(blocks: list[tuple[str, Fields, str]]) -> list[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for kind, fields, path in blocks:
        if kind == "thinking":
            thoughts.append(_needed(fields, "thinking", path))
            fields.text("signature")
            fields.finish()
        elif kind == "tool_use":
            call_id, name = _needed(fields, "id", path, LONGEST_ID), _needed(fields, "name", path, LONGEST_ID)
            function = {"name": name, "arguments": fields.mapping("input") or {}}
            fields.finish()
            calls.append({"id": call_id, "type": "function", "function": function})
        else:
            texts.append(_text_block(kind, fields, path))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(text for text in texts if text)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [{**message, "tool_calls": calls} if calls else message]


def _needed(fields: Fields, name: str, path: str, longest: int | None = None, finish: bool = False) -> str:
    found = fields.text(name, longest)
    if found is None:
        raise bad(f"{path}.{name}", "is missing")
    if finish:
        fields.finish()
    return found
