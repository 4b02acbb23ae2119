"""Chat messages in the forms that templates expect: content as text or parts, calls of tools in two spellings."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offload_runtime.errors import PromptError
from offload_runtime.text.tools.tool_call import ID_LENGTH, json_value

Message = Mapping[str, Any]

TEXT, PARTS, THOUGHTS = "text", "parts", "parts with thoughts"

# What else the parts of a message may be, by their "type" in the forms of OpenAI, Anthropic and transformers.
OTHER_PARTS = {
    **dict.fromkeys(("image", "image_url", "input_image"), "images"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "videos"),
    **dict.fromkeys(("document", "file", "input_file"), "files"),
}


@dataclass(frozen=True)
class Form:
    """How messages are given to a template.

    contents: each role's content, as one TEXT, as PARTS, or as parts that include its THOUGHTS. written_arguments: the
    arguments of calls are JSON text, not mappings. one_call: a message has one call, and its result follows it.
    short_ids: ids of calls have nine characters.
    """

    contents: Mapping[str, str] = field(default_factory=dict)
    written_arguments: bool = False
    one_call: bool = False
    short_ids: bool = False

    def apply(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages in this form."""
        given = [*_one_call_each(messages)] if self.one_call else messages
        return [self._message(one) for one in given]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = self.contents.get(message["role"], TEXT)
        if content != TEXT:
            thought = message.get("reasoning_content") if content == THOUGHTS else None
            thoughts = [{"type": "thinking", "thinking": thought}] if thought else []
            texts = [{"type": "text", "text": message["content"]}] if message["content"] else []
            message = {**message, "content": [*thoughts, *texts]}
        if self.short_ids and "tool_call_id" in message:
            message = {**message, "tool_call_id": _short(message["tool_call_id"])}
        if "tool_calls" in message:
            message = {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
        return message

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if self.written_arguments:
            arguments = json.dumps(arguments, ensure_ascii=False)
        call_id = _short(call["id"]) if self.short_ids else call["id"]
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with their content as one text, arguments of calls as mappings, thoughts under every name that templates
    use for them, and the name of the tool in each result. Raises PromptError.
    """
    names: dict[str, str] = {}
    return [_checked(message, names) for message in messages]


def with_thoughts(text: str) -> dict[str, str]:
    """The thoughts, under every name that templates use for them."""
    return {"reasoning_content": text, "thinking": text}


def text_among_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """A message with calls, its text behind its thoughts: gpt-oss' template takes one or the other."""
    thoughts, text = message.get("reasoning_content"), message["content"]
    if not thoughts or not text or "tool_calls" not in message:
        return message
    return {**message, "content": "", **with_thoughts(f"{thoughts}\n\n{text}")}


def calls_in_text(message: dict[str, Any], begin: str, end: str) -> dict[str, Any]:
    """A message with its calls in its text, as JSON between a model's marks: for templates without a place for them."""
    if "tool_calls" not in message:
        return message
    calls = [call["function"] for call in message["tool_calls"]]
    texts = (message["content"], f"{begin}{json.dumps(calls, ensure_ascii=False)}{end}")
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(text for text in texts if text)}


def _checked(message: Message, names: dict[str, str]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    calls = _checked_calls(message.get("tool_calls"), names) if role == "assistant" else []
    if content is None and (calls or role == "tool"):
        content = ""
    if isinstance(content, list):
        content = _text_of(content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise PromptError(
            'a message has "role" and "content", both text; content may also be a list of parts of type "text"'
        )
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise PromptError('"reasoning_content" of a message is text: what was thought before its content')
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    whole = {**kept, "content": content, **(with_thoughts(reasoning) if reasoning else {})}
    if role == "tool":
        whole |= _result(message, names)
    return {**whole, "tool_calls": calls} if calls else whole


def _text_of(parts: list[Any]) -> str | None:
    """The texts of a message's parts, a line each; None if one is no part. Raises PromptError for other kinds."""
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    other = next((kind for kind in kinds if isinstance(kind, str) and kind in OTHER_PARTS), None)
    if other is not None:
        raise PromptError(
            f'a message has a part of type "{other}": {OTHER_PARTS[other]} are not read, only text is. Leave the part '
            "out, or say in words what it shows."
        )
    if any(kind != "text" for kind in kinds):
        return None
    return "\n".join(str(part.get("text", "")) for part in parts)


def _checked_calls(given: object, names: dict[str, str]) -> list[dict[str, Any]]:
    """The calls in a message; their names go to `names` by id."""
    if given is None:
        return []
    try:
        calls = [_checked_call(call) for call in given]  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError) as error:
        raise PromptError(
            '"tool_calls" of a message is a list of {"id": text, "function": {"name": text, "arguments": a JSON object '
            f"as text or as a mapping}}}}, not {given!r:.200}"
        ) from error
    names |= {call["id"]: call["function"]["name"] for call in calls}
    return calls


def _checked_call(call: Any) -> dict[str, Any]:
    name, arguments, call_id = call["function"]["name"], call["function"].get("arguments") or {}, call.get("id") or ""
    if isinstance(arguments, str):
        arguments = json_value(arguments)
    if not isinstance(name, str) or not isinstance(call_id, str) or not isinstance(arguments, Mapping):
        raise ValueError("not a call")
    return {"id": call_id, "function": {"name": name, "arguments": dict(arguments)}}


def _result(message: Message, names: Mapping[str, str]) -> dict[str, str]:
    """What the result of a call refers to."""
    call_id, name = message.get("tool_call_id"), message.get("name")
    if not isinstance(call_id or "", str) or not isinstance(name or "", str):
        raise PromptError('"tool_call_id" and "name" of a message with the role "tool" are text')
    found = name or names.get(call_id or "")
    return {**({"tool_call_id": call_id} if call_id else {}), **({"name": found} if found else {})}


def _one_call_each(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Messages with several calls as several messages, each followed by the result of its call."""
    rest = [*messages]
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls", [])
        for number, call in enumerate(calls if len(calls) > 1 else []):
            alone = message if number == 0 else {"role": message["role"], "content": ""}
            yield {**alone, "tool_calls": [call]}
            results = [one for one in _results_at_start(rest) if one.get("tool_call_id") == call["id"]]
            yield from results
            rest = [one for one in rest if not any(one is result for result in results)]
        if len(calls) < 2:
            yield message


def _results_at_start(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if message["role"] != "tool":
            return
        yield message


def _short(call_id: str) -> str:
    """An id of nine letters and digits, the same for the same id; one that is so already stays."""
    fits = len(call_id) == ID_LENGTH and call_id.isalnum() and call_id.isascii()
    return call_id if fits else hashlib.sha256(call_id.encode()).hexdigest()[:ID_LENGTH]
