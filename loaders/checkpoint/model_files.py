"""Where a model's config and tensors are: a directory with config.json and safetensors, or one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.foreign_files import broken_link
from loaders.formats.side_files import with_side_file
from loaders.gguf.model import is_gguf, read_gguf_checkpoint, read_gguf_config
from loaders.gguf.names import split_names
from loaders.hub.names import snapshot_of
from loaders.hub.needed_files import GENERATION_CONFIG, check_small_files
from loaders.json_files import read_json
from loaders.safetensors_files import headers as safetensors_files
from loaders.safetensors_files.headers import Checkpoint, no_such_directory


def config_file(model: Path | str) -> Path:
    """The file that the config comes from, whether it is there or not."""
    return Path(model) if is_gguf(model) else Path(model) / "config.json"


def config_values(model: Path | str) -> dict[str, Any]:
    """The config, and what a file beside it says of packed weights, unchecked; raises ModelFilesError."""
    if is_gguf(model):
        return read_gguf_config(model)
    file = config_file(model)
    if not file.parent.is_dir():
        raise ModelFilesError(no_such_directory(file.parent))
    if link := broken_link(file):
        raise ModelFilesError(link)
    if not file.is_file():
        raise ModelFilesError(
            f"{file}: no such file. Give the directory of a model, with config.json and *.safetensors, or a .gguf file."
        )
    check_small_files(file.parent)
    return with_side_file(read_json(file), file.parent)


def generation_config_file(model: Path | str) -> Path:
    """Where it would be said how the model wants to be sampled: of a GGUF file at the top of its repository's snapshot.

    What lies beside other GGUF files need not be theirs.
    """
    model = Path(model)
    if is_gguf(model):
        return (snapshot_of(model) or model) / GENERATION_CONFIG
    return model / GENERATION_CONFIG


def is_downloaded(model: Path | str) -> bool:
    """Whether all the weights are there."""
    model = Path(model)
    if is_gguf(model):
        return all(model.with_name(name).is_file() for name in split_names(model.name))
    return safetensors_files.has_all_weights(model)


def read_checkpoint(model: Path | str) -> Checkpoint:
    """The tensors by transformers' names, checked against the files; raises ModelFilesError, UnsupportedModelError."""
    return read_gguf_checkpoint(model) if is_gguf(model) else safetensors_files.read_checkpoint(model)
