"""A GGUF file instead of a model's directory: finds the file, its config and its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.gguf.config import gguf_config
from loaders.gguf.header import GgufFile, read_gguf
from loaders.gguf.names import is_model_name, split_names
from loaders.gguf.tensors import model_tensors
from loaders.safetensors_files.headers import Checkpoint
from loaders.unchanged import kept_while_unchanged


def is_gguf(path: Path | str) -> bool:
    """Whether this names a GGUF file rather than a directory. It need not exist.

    An existing file of any name counts: Ollama's are called sha256-...
    """
    path = Path(path)
    return path.is_file() or (path.suffix == ".gguf" and not path.is_dir())


def gguf_or_directory(path: Path | str) -> Path:
    """`path`, or the one GGUF file in it where it is a directory without safetensors.

    Raises ModelFilesError, which lists the files, if there are several.
    """
    path = Path(path)
    if not path.is_dir() or any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").exists():
        return path
    files = sorted(
        file
        for file in path.glob("*.gguf")
        if file.is_file() and is_model_name(file.name) and split_names(file.name)[0] == file.name
    )
    if len(files) > 1:
        raise ModelFilesError(
            f"{path}: it holds {len(files)} models. Name one of them:\n"
            + "\n".join(f"  --model {file}" for file in files[:8])
        )
    return files[0] if files else path


@kept_while_unchanged(lambda path: (path,))
def _read(path: Path) -> GgufFile:
    return read_gguf(path)


def read_gguf_cached(path: Path | str) -> GgufFile:
    """`read_gguf` (0.1 s), cached until the file changes."""
    return _read(Path(path))


def read_gguf_config(path: Path | str) -> dict[str, Any]:
    """What the model's config.json would say. Raises ModelFilesError and UnsupportedModelError."""
    return gguf_config(read_gguf_cached(path))


def read_gguf_checkpoint(path: Path | str) -> Checkpoint:
    """The tensors by transformers' names. Raises ModelFilesError and UnsupportedModelError."""
    return Checkpoint(Path(path), model_tensors(read_gguf_cached(path)))
