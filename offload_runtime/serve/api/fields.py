"""The fields of a request's body, read one by one; every fault is named."""

import argparse
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from offload_runtime.serve.errors import ApiError

LONGEST_NAME = 256  # characters of names, of models and the like
_KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", int: "a whole number"}


def bad(param: str, message: str, code: str | None = "invalid_value") -> ApiError:
    """The answer to a request whose field `param` is wrong."""
    return ApiError(400, f"{param}: {message}", param, code)


class Fields:
    """The fields of one JSON object. null counts as left out; `finish` refuses what nobody has asked for.

    within: the path of the object in the body, such as "stream_options".
    """

    def __init__(self, body: Mapping[str, Any], within: str = ""):
        self._left = {name: value for name, value in body.items() if value is not None}
        self._within = within
        self._known: set[str] = set()

    @classmethod
    def of(cls, value: object, path: str) -> "Fields":
        """Those of the value at `path` in the body. Raises ApiError if it is no object."""
        if not isinstance(value, dict):
            raise bad(path, f"must be an object, not {shown(value)}")
        return cls(value, path)

    def path(self, name: str) -> str:
        """The name of a field for messages."""
        return f"{self._within}.{name}" if self._within else name

    def take(self, name: str) -> Any:
        """The value of a field, None if it is left out."""
        self._known.add(name)
        return self._left.pop(name, None)

    def text(self, name: str, longest: int | None = None) -> str | None:
        """A text of at most so many characters."""
        value = self._of_kind(name, str)
        if value is not None and longest is not None and len(value) > longest:
            raise bad(self.path(name), f"has {len(value)} characters; at most {longest} are taken")
        return value

    def needed(self, name: str, longest: int | None = None) -> str:
        """A text that must not be left out."""
        value = self.text(name, longest)
        if value is None:
            raise bad(self.path(name), "is missing")
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str:
        """One of some texts, which must not be left out."""
        value = self.text(name)
        if value is None or value not in allowed:
            raise bad(self.path(name), f"must be {', '.join(allowed)}, not {shown(value)}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if it is left out."""
        return self._of_kind(name, bool) or False

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, both allowed."""
        value = self.take(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is None or (type(value) is int and low <= value <= high):
            return value
        raise bad(self.path(name), f"must be a whole number from {low} to {high}, not {shown(value)}")

    def parsed(self, name: str, parse: Callable[[str], Any], whole: bool) -> Any:
        """A number that an option's reader checks. whole: without a fraction."""
        value = self.take(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise bad(self.path(name), f"must be a number, not {shown(value)}")
        if whole and type(value) is float and value.is_integer():
            value = int(value)
        try:
            return parse(repr(value))
        except argparse.ArgumentTypeError as error:
            raise bad(self.path(name), str(error)) from None

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...] | None:
        """A text or a list of texts, none of them empty."""
        value = self.take(name)
        if value is None:
            return None
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
            raise bad(self.path(name), f"must be a text or a list of texts, none empty, not {shown(value)}")
        if len(found) > most or any(len(one) > longest for one in found):
            raise bad(self.path(name), f"at most {most} texts of {longest} characters are taken")
        return tuple(found)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A JSON object."""
        return self._of_kind(name, dict)

    def below(self, name: str) -> "Fields | None":
        """The fields of a JSON object."""
        given = self.mapping(name)
        return None if given is None else Fields(given, self.path(name))

    def ignore(self, *names: str) -> None:
        """Drop fields that change nothing here."""
        for name in names:
            self.take(name)

    def only(self, name: str, *allowed: object) -> None:
        """Accept a field with these values alone: they ask for nothing more than there is."""
        value = self.take(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            raise bad(self.path(name), f"{shown(value)} is not supported here", "unsupported_value")

    def refuse(self, name: str, instead: str) -> None:
        """Refuse a well-known field and say what to do instead."""
        if self.take(name) is not None:
            raise bad(self.path(name), f"is not supported here: {instead}", "unsupported_field")

    def finish(self) -> None:
        """Refuse what is left."""
        if not self._left:
            return
        name = min(self._left)
        close = difflib.get_close_matches(name[:LONGEST_NAME], self._known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise bad(self.path(name[:LONGEST_NAME]), f"is not a field that is supported here{hint}", "unknown_field")

    def _of_kind(self, name: str, kind: type) -> Any:
        value = self.take(name)
        if value is not None and not isinstance(value, kind):
            raise bad(self.path(name), f"must be {_KINDS[kind]}, not {shown(value)}")
        return value


def shown(value: object) -> str:
    """A value in a message, shortened."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:60]}…"
