"""Which models of the Hugging Face hub already lie in its local cache, and where. No network, no torch."""

import os
from pathlib import Path


def hub_cache() -> Path:
    """The directory that `huggingface_hub` keeps models in, by the variables that it goes by."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_model(name: str, revision: str = "main") -> Path | None:
    """Where the files of "org/name" lie; None where its config or its weights were not downloaded.

    A download that was interrupted may look whole here: its index names the shards that are missing.
    """
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / commit
    has_weights = (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))
    return snapshot if commit and Path(commit).name == commit and has_weights else None
