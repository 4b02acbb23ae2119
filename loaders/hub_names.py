"""Names of models on the Hugging Face hub: org/name, with @ and a branch, a tag or a commit behind it if wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PART = r"[A-Za-z0-9][\w.-]{0,95}"  # the hub's own limit is 96 characters
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][\w./-]{{0,199}}))?", re.ASCII)
_IN_CACHE = re.compile(r"models--[^/]+--([^/]+)/snapshots/[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """repo: "org/name". revision: a branch, a tag or a commit; None for the newest."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def model_path(model: str | Path) -> Path:
    """The path of a directory, or a hub's name as it is: what is written as a path never becomes a name.

    "./org/name" and "org/name/" are directories, and so is everything that is a Path already.
    """
    if isinstance(model, Path) or model.startswith(("./", "../", "~")) or model.endswith("/"):
        return Path(model).absolute()
    return Path(model)


def hub_name(model: Path) -> HubName | None:
    """The name that `model` stands for; None for a directory that exists and for what cannot be a name."""
    match = _NAME.fullmatch(model.as_posix())
    if match is None or ".." in model.as_posix() or model.exists():
        return None
    return HubName(match[1], match[2])


def directory_name(directory: Path) -> str:
    """What people call the model in a directory: of a snapshot in the hub's cache its name, not the commit."""
    directory = directory.resolve()
    match = _IN_CACHE.fullmatch("/".join(directory.parts[-3:]))
    return match[1] if match else directory.name
