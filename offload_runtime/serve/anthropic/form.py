"""Answers as Anthropic's messages, whole and as events."""

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from offload_runtime.serve.anthropic.errors import anthropic_body
from offload_runtime.serve.api.asked import SseEvent
from offload_runtime.serve.api.tools import kept
from offload_runtime.serve.errors import ApiError
from offload_runtime.text.tools.tool_call import ToolCall

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.reply import Reply

_EMPTY = {"thinking": {"thinking": "", "signature": ""}, "text": {"text": ""}}
_DELTAS = {"thinking": "thinking_delta", "text": "text_delta"}


class MessageForm:
    """One message. several_calls: whether it may call more than one tool."""

    def __init__(self, model: str, several_calls: bool):
        self._head = {"id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": model}
        self._several = several_calls
        self._index = -1
        self._open: str | None = None  # the kind of block that is being written
        self._calls = 0

    def opening(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """The message without content."""
        start: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(replies[0])}
        yield _event("message_start", message={**self._head, **start})
        yield _event("ping")

    def step(self, index: int, step: "Step") -> Iterator[SseEvent]:
        """What a step adds to the content."""
        for kind, text in (("thinking", step.reasoning), ("text", step.text)):
            if text:
                yield from self._text(kind, text)
        for call in kept(step.tool_calls, self._calls, self._several):
            self._calls += 1
            yield from self._call(call)
        if step.finish_reason is not None:
            yield from self._close()

    def closing(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """Why the message ends, and what it took."""
        yield _event("message_delta", delta=_end(replies[0]), usage=_usage(replies[0]))
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterator[SseEvent]:
        """An error in place of the rest."""
        yield SseEvent(anthropic_body(error), "error")

    def whole(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        """The message at once."""
        reply = replies[0]
        content: list[dict[str, Any]] = []
        if reply.reasoning:
            content.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
        if reply.text:
            content.append({"type": "text", "text": reply.text})
        for call in kept(reply.tool_calls, 0, self._several):
            content.append({**_call_block(call), "input": json.loads(call.arguments)})
        return {**self._head, "content": content, **_end(reply), "usage": _usage(reply)}

    def _text(self, kind: str, text: str) -> Iterator[SseEvent]:
        if self._open != kind:
            yield from self._close()
            yield self._begin(kind, {"type": kind, **_EMPTY[kind]})
        yield _event("content_block_delta", index=self._index, delta={"type": _DELTAS[kind], kind: text})

    def _call(self, call: ToolCall) -> Iterator[SseEvent]:
        yield from self._close()
        yield self._begin("tool_use", {**_call_block(call), "input": {}})
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        yield _event("content_block_delta", index=self._index, delta=delta)
        yield from self._close()

    def _begin(self, kind: str, block: dict[str, Any]) -> SseEvent:
        self._index, self._open = self._index + 1, kind
        return _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterator[SseEvent]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._index)


def _event(kind: str, **data: Any) -> SseEvent:
    return SseEvent({"type": kind, **data}, kind)


def _call_block(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _end(reply: "Reply") -> dict[str, Any]:
    """Why a reply has ended."""
    reason, stop = "end_turn", None
    if reply.finish_reason == "length":
        reason = "max_tokens"
    elif reply.tool_calls:
        reason = "tool_use"
    elif reply.stop_string is not None:
        reason, stop = "stop_sequence", reply.stop_string
    return {"stop_reason": reason, "stop_sequence": stop}


def _usage(reply: "Reply") -> dict[str, int]:
    """Tokens; those of the prompt that were in the cache are counted apart, once it is known."""
    stats = reply.stats
    read = stats.prompt_tokens_read if stats.passes else stats.prompt_tokens
    cached = stats.prompt_tokens - read
    counts = {"input_tokens": read, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
    return {**counts, "output_tokens": stats.tokens}
