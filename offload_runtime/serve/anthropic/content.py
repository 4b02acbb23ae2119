"""The messages of Anthropic's form, with their blocks of content, as chat templates take them."""

from collections.abc import Iterator
from typing import Any

from offload_runtime.serve.api.fields import LONGEST_NAME, Fields, bad
from offload_runtime.serve.api.messages import each_message, each_part, kind_of, text_of

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
    found: list[dict[str, Any]] = []
    for message in each_message(fields):
        for one in _read_message(message):
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


def _read_message(fields: Fields) -> list[dict[str, Any]]:
    role, content = fields.choice("role", _ROLES), fields.take("content")
    fields.finish()
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = [*_blocks(content, fields.path("content"))]
    if role == "system":
        return [{"role": role, "content": "\n".join(text_of(*block) for block in blocks)}]
    return _of_assistant(blocks) if role == "assistant" else _of_user(blocks)


def _blocks(content: object, path: str) -> Iterator[tuple[Fields, str | None]]:
    """Each block's fields and its type."""
    for block in each_part(content, path, "blocks"):
        kind = kind_of(block, _OTHER_BLOCKS)
        block.ignore("cache_control", "citations")
        yield block, kind


def _text_of(content: object, path: str) -> str:
    """A text, or the texts of a list of blocks, a line each."""
    if isinstance(content, str):
        return content
    return "\n".join(text_of(*block) for block in _blocks(content, path))


def _of_user(blocks: list[tuple[Fields, str | None]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for fields, kind in blocks:
        if kind != "tool_result":
            texts.append(text_of(fields, kind))
            continue
        call_id, content = fields.needed("tool_use_id", LONGEST_NAME), fields.take("content")
        text = "" if content is None else _text_of(content, fields.path("content"))
        failed = fields.flag("is_error")
        fields.finish()
        results.append({"role": "tool", "tool_call_id": call_id, "content": text or ("error" if failed else "")})
    asked = [{"role": "user", "content": "\n".join(texts)}] if texts or not results else []
    return [*results, *asked]


def _of_assistant(blocks: list[tuple[Fields, str | None]]) -> list[dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for fields, kind in blocks:
        if kind == "thinking":
            thoughts.append(fields.needed("thinking"))
            fields.text("signature")
            fields.finish()
        elif kind == "tool_use":
            call_id, name = fields.needed("id", LONGEST_NAME), fields.needed("name", LONGEST_NAME)
            function = {"name": name, "arguments": fields.mapping("input") or {}}
            fields.finish()
            calls.append({"id": call_id, "type": "function", "function": function})
        else:
            texts.append(text_of(fields, kind))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(text for text in texts if text)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [{**message, "tool_calls": calls} if calls else message]
