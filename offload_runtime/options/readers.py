"""Readers of values from text: argparse's `type`, and what /set uses. Each raises ArgumentTypeError with the reason."""

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from loaders.checkpoint.rope_scaling import RopeScaling
from loaders.json_files import read_object
from loaders.sizes import parse_size
from scheduler.machine.machine import device_index
from scheduler.plan.request import MOST_TEXTS

Value = TypeVar("Value")
ONLY_8_BITS = "keys and values can be kept in 8 bits; without the option they have those of the computation"
_MOST_SCHEMA_BYTES = 1 << 20
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A reader of integers from `low` to `high`, both allowed."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: {_range(low, high)}")
        return value

    return parse


def real_number(low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """A reader of finite numbers from `low` to `high`, both allowed; `above` excludes `low` itself."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        inside = math.isfinite(value) and value >= low and (high is None or value <= high)
        if not inside or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is out of range: {_range(low, high, above)}")
        return value

    return parse


def _range(low: float, high: float | None, above: bool = False) -> str:
    start = f"above {low}" if above else f"at least {low}"
    return start if high is None else f"{start} and at most {high}"


def count_or_auto(text: str) -> int | None:
    """Reads an integer of at least 1, or "auto", which gives None."""
    return None if text == "auto" else whole_number(1)(text)


def texts_at_once(text: str) -> int | str:
    """Reads how many texts share a pass, or "auto"."""
    return text if text == "auto" else whole_number(1, MOST_TEXTS)(text)


def row_bits(text: str) -> int:
    """Reads the bits of KV rows: 8."""
    if text != "8":
        raise argparse.ArgumentTypeError(f"{text!r}: {ONLY_8_BITS}")
    return 8


def checked(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A reader that calls `read` and reports the message of its ValueError."""

    def parse(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


size = checked(parse_size)  # such as 20GiB
scaled_rotation = checked(RopeScaling.parse)  # such as yarn:4


def device(text: str) -> str:
    """Reads a device that `read_machine` accepts."""
    checked(device_index)(text)
    return text


def utf8_text(text: str) -> str:
    """Reads text; invalid UTF-8 arrives as lone surrogates, which tokenizers do not accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from None
    return text


def texts(text: str) -> tuple[str, ...]:
    r"""Reads a text, in which \n, \t, \r and \\ are escapes, or JSON: a text or a list of texts."""
    found = _json(text) if text[:1] in ("[", '"') else None
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        found = [re.sub(r"\\([ntr\\])", lambda escape: _ESCAPES[escape[1]], text)]  # [INST] is text as well
    if not all(map(utf8_text, found)):
        raise argparse.ArgumentTypeError("a text must not be empty")
    return tuple(found)


def token_biases(text: str) -> tuple[tuple[int, float], ...]:
    """Reads ID=BIAS,ID=BIAS, or JSON: {"ID": BIAS}."""
    try:
        pairs = _json(text).items() if text[:1] == "{" else [item.split("=") for item in text.split(",")]
        found = tuple((int(token), float(bias)) for token, bias in pairs)
    except (AttributeError, TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not ID=BIAS or ID=BIAS,ID=BIAS") from None
    if any(token < 0 or math.isnan(bias) for token, bias in found):
        raise argparse.ArgumentTypeError(f"{text!r:.80} holds what is no token id or no bias")
    return found


def response_format(text: str) -> Mapping[str, Any]:
    """Reads "json", a file with a JSON schema, or JSON: a schema, or a response format as in OpenAI's interface."""
    if text == "json":
        return {"type": "json_object"}
    found = _json(text) if text[:1] == "{" else _schema_file(Path(text).expanduser())
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not JSON")
    is_format = found.get("type") in ("text", "json_object", "json_schema")  # none of them is a type of JSON
    return found if is_format else {"type": "json_schema", "json_schema": {"schema": found}}


def _schema_file(file: Path) -> dict[str, Any]:
    try:
        return read_object(file, _MOST_SCHEMA_BYTES)
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    raise argparse.ArgumentTypeError(f'"{file}" is neither json nor a file with a JSON schema ({reason})')


def _json(text: str) -> Any:
    """The value of JSON text; None for invalid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def template_argument(text: str) -> tuple[tuple[str, Any]]:
    """Reads KEY=JSON. A bare word is text, unless it looks like another language's true, false or null."""
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=JSON, such as enable_thinking=false")
    try:
        return ((name, json.loads(value)),)
    except ValueError:
        if re.fullmatch(r"[A-Za-z][\w.-]*", value) and value.lower() not in ("true", "false", "none", "null", "nan"):
            return ((name, value),)
        raise argparse.ArgumentTypeError(
            f"{value!r} is not JSON: true, false, null, 3, a word, or '\"text\"' with its quotes"
        ) from None
