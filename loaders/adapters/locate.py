"""Finds a model's adapter: a named one, one beside the model, or one given instead of a model. No torch."""

from __future__ import annotations

from pathlib import Path

from loaders.adapter_config import adapter_alone, base_of, called
from loaders.errors import ModelFilesError
from loaders.foreign_files import ADAPTER_CONFIG, INDEX, SINGLE_FILE
from loaders.hub.cache import cached_snapshot, hub_cache, repository_directory
from loaders.hub.names import hub_name, model_path

NONE = "none"


def with_adapter(model: Path, adapter: Path | str | None) -> tuple[Path, Path | None]:
    """The model and the directory of its adapter. adapter: a directory or a hub name, "none", or None for default.

    By default an adapter beside the model is used if it names that directory as its base; for a directory with only an
    adapter, the model is its base, if that is a directory. Raises ModelFilesError, with commands, if this is unclear.
    """
    if adapter is not None:
        return model, None if adapter == NONE else _directory(adapter)
    if not (model / ADAPTER_CONFIG).is_file():
        return model, None
    base = base_of(model)
    here = Path(base).resolve() if base and Path(base).is_dir() else None
    if not any((model / name).exists() for name in (SINGLE_FILE, INDEX)):
        if here and here != model.resolve():
            return Path(base).absolute(), model
        raise ModelFilesError(adapter_alone(str(model), base))
    if here == model.resolve():
        return model, model
    raise ModelFilesError(
        f"{model}: beside the model lies an adapter, made for {called(base)}. It may be merged already. Say which is "
        f"meant:\n  --adapter {model}   merges it while the model is read\n  --adapter {NONE}   leaves it out"
    )


def _directory(adapter: Path | str) -> Path:
    path = model_path(adapter)
    name = hub_name(path)
    if name is None:
        return path.parent if path.is_file() else path.absolute()
    snapshot = cached_snapshot(repository_directory(hub_cache(), name.repo), name.revision or "main")
    if snapshot is None:
        raise ModelFilesError(
            f"{adapter}: there is no such directory, and the cache of downloads does not hold it. Download it first:\n"
            f"  hf download {name.repo}" + (f" --revision {name.revision}" if name.revision else "")
        )
    return snapshot
