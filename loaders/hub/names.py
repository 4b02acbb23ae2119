"""Names of models on the Hugging Face hub: org/name, org/name@revision, org/name:Q4_K_M for one of its GGUF files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from loaders.errors import ModelFilesError
from loaders.gguf.model import is_gguf
from loaders.gguf.names import model_stem
from loaders.message_text import displayable, quoted
from loaders.safetensors_files.headers import MAX_FILE_NAME

_PART = r"[A-Za-z0-9][\w.-]{0,95}"  # the hub's own limit is 96 characters
_REVISION = r"[A-Za-z0-9][\w./-]{0,199}"
_WANTED = r"[^/\\:\x00-\x1f\x7f][^\\:\x00-\x1f\x7f]{0,254}"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@({_REVISION}))?(?::({_WANTED}))?", re.ASCII)
_FILE = re.compile(rf"({_PART}/{_PART})/({_WANTED}\.gguf)", re.ASCII)
_SITE = re.compile(r"(?:(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co|hf-mirror\.com)/|hf://(?:models/)?)(?=[^/])")
# Hub URLs after org/name: pages about a revision, one of its files, or the whole repository.
_PAGE = re.compile(
    rf"({_PART}/{_PART})(?:/(tree|blob|resolve|raw|commit|commits)/([^/]+)(?:/(.+))?|/(?:discussions|settings|blame)(?:/.*)?)",
    re.ASCII,
)
_NO_MODELS = ("datasets/", "spaces/", "collections/", "papers/", "docs/", "blog/", "organizations/", "settings/")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,15}://", re.IGNORECASE)
_CACHE_FOLDER = re.compile(r"models--([^/]+?)--([^/]+)")
_OLLAMA = re.compile(r"^(sha256-[0-9a-f]{12})[0-9a-f]{52}$")
_IN_CACHE = re.compile(r"models--[^/]+--([^/]+)/snapshots/[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """repo: "org/name". revision: a branch, a tag or a commit; None for the newest.

    wanted: one of the repository's GGUF models, by the end of its name ("Q4_K_M") or by a file; None for the
    repository's default.
    """

    repo: str
    revision: str | None = None
    wanted: str | None = None

    @property
    def repository(self) -> str:
        """The name without `wanted`."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def __str__(self) -> str:
        return f"{self.repository}:{self.wanted}" if self.wanted else self.repository


def model_path(model: str | Path) -> Path:
    """A path, or a hub name left as it is: what is written as a path never becomes a name.

    "./org/name", "org/name/" and every Path are directories. "hf.co/org/name" (Ollama's form) and URLs at
    huggingface.co are names, and so is "models--org--name" (the cache's form) unless that directory exists. A leading
    "~" is expanded to the home directory. Raises ModelFilesError for what cannot be a file name.
    """
    path = model if isinstance(model, Path) else _without_site(model.strip())
    if any(len(os.fsencode(part)) > MAX_FILE_NAME for part in path.parts) or "\0" in str(path):
        raise ModelFilesError(
            f"{quoted(str(model))}: no file or directory can have this name: of each part of a path at most "
            f"{MAX_FILE_NAME} bytes are stored, and none of them is zero."
        )
    return _at_home(path).absolute() if isinstance(model, Path) else path


def _without_site(model: str) -> Path:
    if site := _SITE.match(model):
        return Path(_name_in_address(model, site.end()))
    if model.startswith("file://"):
        return Path(unquote(model.removeprefix("file://"))).absolute()
    if _ADDRESS.match(model):
        raise ModelFilesError(
            f"{quoted(model)}: models are downloaded from the Hugging Face hub alone. Download it, and give its path."
        )
    if model.startswith(("./", "../", "~")) or model.endswith("/"):
        return _at_home(Path(model)).absolute()
    if (folder := _CACHE_FOLDER.fullmatch(model)) and not _is_there(Path(model)):
        return Path(f"{folder[1]}/{folder[2]}")
    return Path(model)


def _at_home(path: Path) -> Path:
    try:
        return path if _is_there(path) else path.expanduser()
    except RuntimeError:  # no such user
        return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _name_in_address(whole: str, start: int) -> str:
    """The name in the path of a hub URL: a GGUF file names that file, other pages name their model.

    Raises ModelFilesError for pages that belong to no model.
    """
    address = re.split(r"[?#]", whole[start:])[0].rstrip("/")
    if address.startswith(_NO_MODELS):
        raise ModelFilesError(
            f"{quoted(whole)}: this page is no model's. Give a model's page, or its name as org/name."
        )
    match = _PAGE.fullmatch(address)
    if match is None or (address.endswith(".gguf") and not match[2]):
        return unquote(address).removesuffix(".git")
    repo, kind, revision, file = match.groups()
    at = "" if revision in (None, "main") else f"@{unquote(revision)}"
    wanted = unquote(file) if file and kind != "commits" else ""
    if wanted.endswith(".gguf") or (kind == "tree" and wanted):
        return f"{repo}{at}:{wanted}"
    return f"{repo}{at}"


def hub_name(model: Path) -> HubName | None:
    """`model` as a hub name; None if it is a path that exists here, or cannot be a name.

    "org/name/FILE.gguf" is one too, unless there is a directory org/name here.
    """
    text = model.as_posix()
    if ".." in text or model.exists():
        return None
    if match := _NAME.fullmatch(text):
        return HubName(match[1], match[2], match[3])
    if (match := _FILE.fullmatch(text)) and not Path(match[1]).exists():
        return HubName(match[1], wanted=match[2])
    return None


def directory_name(model: Path) -> str:
    """The display name of the model in a directory or GGUF file; for a snapshot in the hub's cache, its hub name.

    Plans, banners and progress lines show it, so terminal-controlling characters are escaped.
    """
    if is_gguf(model):
        return displayable(_OLLAMA.sub(r"\1", model_stem(model.name))).replace("\n", "\\n")
    directory = model.resolve()
    match = _IN_CACHE.fullmatch("/".join(directory.parts[-3:]))
    return displayable(match[1] if match else directory.name).replace("\n", "\\n")


def snapshot_of(file: Path) -> Path | None:
    """The snapshot in the hub's cache with this file at its top or one directory below; None for other files."""
    return next((one for one in list(file.parents)[:2] if _IN_CACHE.fullmatch("/".join(one.parts[-3:]))), None)
