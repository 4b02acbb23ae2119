"""Reads the fields of a head's config.json, each checked; messages name the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.message_text import quoted

_MOST = (1 << 31) - 1
MOST_TAPS = 64  # published heads read three to five layers of the target


@dataclass(frozen=True)
class ConfigFields:
    """The fields of one object in a head's config."""

    file: Path
    values: Mapping[str, Any]

    def below(self, name: str) -> ConfigFields:
        """Those of an object inside; empty where there is none."""
        inner = self.values.get(name)
        if inner is not None and not isinstance(inner, dict):
            raise self.wrong(name, "an object")
        return ConfigFields(self.file, inner or {})

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = _MOST) -> int:
        """A whole number from `least` to `most`."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most:,}")
        return value

    def real(self, name: str, default: float | None = None) -> float | None:
        """A finite number, or the default where it is null or missing."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not -1e9 < value < 1e9:
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def wholes(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 0; None if it is missing or empty."""
        value = self.values.get(name)
        if not value:
            return None
        if not isinstance(value, list) or not all(type(one) is int and 0 <= one <= _MOST for one in value):
            raise self.wrong(name, "a list of whole numbers")
        if len(value) > MOST_TAPS:
            raise self.wrong(name, f"a list of at most {MOST_TAPS} numbers")
        return tuple(value)

    def wrong(self, name: str, must: str) -> ModelFilesError:
        return ModelFilesError(f"{self.file}: {name} is {quoted(self.values.get(name))}, but must be {must}.")

    def unsupported(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.file}: {what}, which is not supported.")
