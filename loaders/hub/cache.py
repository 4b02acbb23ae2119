"""Which models of the Hugging Face hub already lie in its local cache, and where. No network, no torch."""

import os
from pathlib import Path

from loaders.cache_directory import write_whole
from loaders.gguf.names import SUFFIX


def hub_cache() -> Path:
    """The directory that `huggingface_hub` keeps models in, by the variables that it goes by."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def repository_directory(cache: Path, repo: str) -> Path:
    """Where a cache has the repository "org/name", or will have it."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached_snapshot(repository: Path, revision: str = "main") -> Path | None:
    """The directory of the commit that a repository's directory last knew as `revision`, or that is one itself."""
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and Path(commit).name == commit and snapshot.is_dir() else None


def note_commit(snapshot: Path, revision: str) -> None:
    """Have the cache know the commit of a snapshot as `revision`, as huggingface_hub notes it. Raises OSError."""
    repository, commit = snapshot.parents[1], snapshot.name
    if revision != commit and cached_snapshot(repository, revision) != snapshot:
        write_whole(repository / "refs" / revision, commit)


def gguf_sizes(snapshot: Path) -> dict[str, int]:
    """Bytes of the GGUF files at the top of a snapshot and one directory below, by their paths in it."""
    files = (file for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for file in snapshot.glob(pattern))
    return {file.relative_to(snapshot).as_posix(): file.stat().st_size for file in files if file.is_file()}


def cached_model(name: str, revision: str = "main") -> Path | None:
    """Where the files of "org/name" lie; None where its config or its weights were not downloaded.

    A download that was interrupted may look whole here: its index names the shards that are missing.
    """
    snapshot = cached_snapshot(repository_directory(hub_cache(), name), revision)
    if snapshot is None or not (snapshot / "config.json").is_file() or not any(snapshot.glob("*.safetensors")):
        return None
    return snapshot
