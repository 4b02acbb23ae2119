"""Finds models in the local cache of the Hugging Face hub. No network, no torch."""

import os
from pathlib import Path

from loaders.cache_directory import write_whole
from loaders.gguf.names import SUFFIX


def hub_cache() -> Path:
    """The directory that `huggingface_hub` keeps models in, by its environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def repository_directory(cache: Path, repo: str) -> Path:
    """The cache's directory for the repository "org/name", which need not exist yet."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached_snapshot(repository: Path, revision: str = "main") -> Path | None:
    """The snapshot of the commit that `revision` is, or last meant when the hub was asked."""
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and Path(commit).name == commit and snapshot.is_dir() else None


def note_commit(snapshot: Path, revision: str) -> None:
    """Record a snapshot's commit as `revision` in the cache, as huggingface_hub does. Raises OSError."""
    repository, commit = snapshot.parents[1], snapshot.name
    if revision != commit and cached_snapshot(repository, revision) != snapshot:
        write_whole(repository / "refs" / revision, commit)


def gguf_sizes(snapshot: Path) -> dict[str, int]:
    """Path to bytes, for the GGUF files at the top of a snapshot and one directory below."""
    files = (file for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for file in snapshot.glob(pattern))
    return {file.relative_to(snapshot).as_posix(): file.stat().st_size for file in files if file.is_file()}


def cached_model(name: str, revision: str = "main") -> Path | None:
    """The snapshot of "org/name"; None if its config or its weights were not downloaded.

    An interrupted download may look complete here; its index names the missing shards.
    """
    snapshot = cached_snapshot(repository_directory(hub_cache(), name), revision)
    if snapshot is None or not (snapshot / "config.json").is_file() or not any(snapshot.glob("*.safetensors")):
        return None
    return snapshot
