"""Reads a request's body as JSON. How much there is of anything is bounded before it is parsed."""

import asyncio
import json
import math
import re
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request

from offload_runtime.serve.errors import ApiError

MOST_BYTES = 16 << 20  # a context of a million tokens is some 5 MB of text
MOST_DEPTH = 64
MOST_CONTAINERS = 1 << 15  # objects and lists: every message, part of a message, and level of a schema is one
MOST_VALUES = 1 << 21  # a prompt of token ids has one value per token
MOST_DIGITS = 40  # Python takes quadratic time for long numbers
PATIENCE = 30.0  # seconds between two pieces of a body, and for all of it beside what SLOWEST allows
SLOWEST = 8192  # bytes a second, on average: who sends less only keeps the connection

_STRING = re.compile(rb'"[^"]*"?')
_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(request: Request) -> bytes:
    """The body's bytes. Raises ApiError for too many of them, or if they do not come; ClientDisconnect."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and (len(stated) > 18 or int(stated) > MOST_BYTES):
        raise _too_long()
    pieces: list[bytes] = []
    size = 0
    stream, began = request.stream().__aiter__(), time.monotonic()
    while True:
        left = PATIENCE + size / SLOWEST - (time.monotonic() - began)
        try:
            piece = await asyncio.wait_for(stream.__anext__(), max(0.0, min(left, PATIENCE)))
        except StopAsyncIteration:
            return b"".join(pieces)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body came too slowly: {size} bytes of it are here", code="timeout") from None
        size += len(piece)
        if size > MOST_BYTES:
            raise _too_long()
        pieces.append(piece)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request that is answered at once. Raises ApiError, also if its client leaves."""
    try:
        return parse_object(await read_body(request))
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request was complete") from None


def _too_long() -> ApiError:
    return ApiError(413, f"the body is longer than {MOST_BYTES >> 20} MiB", code="too_long")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError for anything else, and for more of anything than is taken."""
    _check_structure(body)
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_int=_whole, parse_float=_real, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise _not_json(str(error)) from None
    if not isinstance(found, dict):
        raise _not_json("it is not an object")
    if _HALF_CHARACTER.search(body):
        _check_whole_characters(found)
    return found


def _not_json(reason: str) -> ApiError:
    return ApiError(400, f"the body must be a JSON object: {reason}", code="invalid_json")


def _check_structure(body: bytes) -> None:
    """Bound nesting and counts. What is in texts is left out; up to the first fault the parser sees the same."""
    outside = _STRING.sub(b"", body.replace(rb"\\", b"").replace(rb"\"", b""))
    brackets = outside.translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * MOST_CONTAINERS or outside.count(b",") > MOST_VALUES:
        raise ApiError(
            400,
            f"the body holds more than {MOST_CONTAINERS} objects and lists, or {MOST_VALUES} values",
            code="too_many",
        )
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST_DEPTH:
            raise ApiError(400, f"the body is nested deeper than {MOST_DEPTH} levels", code="too_deep")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}{'…' if len(text) > 20 else ''} is out of range")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _check_whole_characters(found: dict[str, Any]) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _not_json("a text holds half a character (a lone surrogate such as \\ud800)") from None
