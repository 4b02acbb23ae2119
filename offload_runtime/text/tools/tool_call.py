"""A call of a tool as a model writes it, and the JSON that calls are made of."""

import json
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # Mistral's templates take no other


def new_call_id() -> str:
    """A random id for a call: 9 letters and digits."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))


@dataclass(frozen=True)
class ToolCall:
    """A call of one tool.

    arguments: a JSON object as text. id: the result of the call refers to it; calls that differ in nothing else are
    equal.
    """

    name: str
    arguments: str
    id: str = field(default_factory=new_call_id, compare=False)

    @classmethod
    def of(cls, name: object, arguments: object, id: object = None) -> "ToolCall":
        """A call with its arguments as a mapping or as JSON of one. Raises ValueError for anything else."""
        if isinstance(arguments, str):
            arguments = json_value(arguments)
        if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
            raise ValueError("a call has a name and a mapping of arguments")
        try:
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except TypeError as error:
            raise ValueError("arguments that JSON does not have") from error
        (name + written).encode()  # half a character cannot be sent on
        return cls(name.strip(), written, *([id] if isinstance(id, str) and id else []))


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refused)  # models write line breaks into strings as they are


def json_value(text: str) -> Any:
    """The JSON value that a text is. Raises ValueError, also for one nested too deeply."""
    values = [*json_values(text)]
    if len(values) != 1:
        raise ValueError("not one value")
    return values[0]


def json_values(text: str, separators: str = "") -> Iterator[Any]:
    """The JSON values that a text consists of, with space and `separators` between them. Raises ValueError."""
    position = _skip(text, 0, separators)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        yield value
        position = _skip(text, position, separators)


def _skip(text: str, position: int, separators: str) -> int:
    while position < len(text) and (text[position].isspace() or text[position] in separators):
        position += 1
    return position
