"""Resolves a local path to a model: a directory, a file in one, a folder of the hub's cache, a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from loaders.errors import ModelFilesError
from loaders.foreign_files import INDEX, SINGLE_FILE, broken_link, check_content
from loaders.gguf.model import gguf_or_directory
from loaders.hub.cache import cached_snapshot
from loaders.safetensors_files.headers import read_weight_map

_CACHE_FOLDER = re.compile(r"models--[^/]+?--[^/]+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def local_model(path: Path) -> Path:
    """The directory or GGUF file that a path means. Raises ModelFilesError if there is none, or several.

    A file of a directory's model means that model; a folder models--org--name of the download cache means its latest
    downloaded commit.
    """
    if link := broken_link(path):
        raise ModelFilesError(link)
    if path.is_file() and path.suffix in (".safetensors", ".json", *_PICKLES):
        path = _directory_of(path)
    if path.name == "snapshots" and _CACHE_FOLDER.fullmatch(path.parent.name):
        path = path.parent
    if _CACHE_FOLDER.fullmatch(path.name) and path.is_dir() and not (path / "config.json").exists():
        path = _snapshot(path)
    found = gguf_or_directory(path)
    if found.is_dir() and not (found / "config.json").exists():
        for file in sorted(found.glob("*.gguf")):
            check_content(file)  # other errors are reported when it is read
    return found


def _directory_of(file: Path) -> Path:
    directory = file.parent
    if file.suffix in _PICKLES:
        raise ModelFilesError(
            f"{file}: such files can run code when read, so they never are. Give a model in safetensors."
        )
    names = {"config.json", SINGLE_FILE, INDEX}
    if not (directory / SINGLE_FILE).exists() and (directory / INDEX).is_file():
        names |= set(read_weight_map(directory / INDEX).values())
    if file.name in names and (directory / "config.json").is_file():
        return directory
    raise ModelFilesError(
        f"{file}: this one file is no model. Give a directory with config.json and {SINGLE_FILE} or {INDEX}."
    )


def _snapshot(folder: Path) -> Path:
    if snapshot := cached_snapshot(folder):
        return snapshot
    commits = sorted(one for one in folder.glob("snapshots/*") if one.is_dir())
    if len(commits) != 1:
        holds = (
            f"{len(commits)} commits and no note which is the newest"
            if commits
            else "no commit: nothing was downloaded"
        )
        listed = "".join(f"\n  --model {commit}" for commit in commits[:8])
        raise ModelFilesError(f"{folder}: this folder of the cache of downloads holds {holds}.{listed}")
    return commits[0]
