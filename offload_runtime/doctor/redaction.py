"""Removes private details from a report."""

import getpass
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?:~(?:{0})+|(?:\b[A-Za-z]:)?(?:{0}){{2,}})[/\\]?".format(r"[/\\][\w.+@%~\-]+"))
_UUID = re.compile(r"(?:GPU-|MIG-)*[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NOBODYS = {"root", "user", "localhost"}


def redacted(found: Any) -> Any:
    """The same value of JSON types, without paths, user and host names and GPU serial numbers in its texts."""
    if isinstance(found, dict):
        return {key: redacted(value) for key, value in found.items()}
    if isinstance(found, list):
        return [redacted(value) for value in found]
    return _text(found) if isinstance(found, str) else found


def _text(text: str) -> str:
    for place in _own_places():
        text = text.replace(place, "~")
    text = _UUID.sub("(UUID)", _PATH.sub("(path)", text))
    for name in _own_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text)
    return text


def _own_places() -> list[str]:
    """The user's directories; their names may contain spaces."""
    places: list[str] = []
    with suppress(OSError, RuntimeError):
        places = [str(Path.cwd()), str(Path.home())]
    return [place for place in places if len(place) > 1]


def _own_names() -> list[str]:
    """Names of the user and of the host, except names so short that they would match ordinary words."""
    names = {platform.node(), platform.node().partition(".")[0]}
    with suppress(KeyError, OSError):  # a user without a name, as in containers
        names.add(getpass.getuser())
    return sorted((name for name in names - _NOBODYS if len(name) > 2), key=len, reverse=True)
