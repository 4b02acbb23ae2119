"""How answers leave: JSON, and server-sent events."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Send

from offload_runtime.serve.api.asked import SseEvent

EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip


class JsonResponse(Response):
    """JSON with text as it is, not in escapes."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        return to_json(content).encode()


def to_json(content: Mapping[str, Any]) -> str:
    """JSON on one line."""
    return _ENCODER.encode(content)


def frame(event: SseEvent) -> bytes:
    """A server-sent event."""
    data = event.data if isinstance(event.data, str) else to_json(event.data)
    named = f"event: {event.name}\n" if event.name else ""
    return f"{named}data: {data}\n\n".encode()


class EventStream:
    """Sends events as they come. A context for one answer: `begin`, then `send` any number of times, then `end`."""

    def __init__(self, send: Send):
        self._send = send

    async def begin(self) -> None:
        """Send the headers; from here on, errors are events."""
        headers = [(name.encode(), value.encode()) for name, value in EVENTS.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, content: bytes) -> None:
        """Send events or comments. Waits while the client reads too slowly."""
        if content:
            await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self) -> None:
        """End the answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
