"""Recognizes files that are no weights although weights belong there, by name and first bytes. No torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from loaders.errors import ModelFilesError

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What a file really is, by its first bytes.
_BEGINNINGS = (
    (b"version https://git-lfs", "it is a git-lfs pointer to the file, not the file. In the clone run: git lfs pull"),
    (
        b"<!doctype html",
        "it is a web page, not the file. On the hub files are at /resolve/, pages about them at /blob/",
    ),
    (b"<html", "it is a web page, not the file. On the hub files are at /resolve/, pages about them at /blob/"),
    (b"pk\x03\x04", "it is a PyTorch (pickle) file under another name. Such files can run code, so it is never read"),
    (b"gguf", "it is a GGUF file under another name: give it a name that ends in .gguf"),
)

_TOLD_BY = 32  # bytes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTS = (".safetensors", ".gguf", *_PICKLES, ".onnx", ".h5", ".msgpack", ".npz")


class ForeignContent(ValueError):
    """A file holds something other than expected, and `foreign_content` recognizes it."""


def foreign_content(start: bytes) -> str | None:
    """What a file that begins like this is instead of weights or JSON; None if it is not recognized."""
    return next((said for begin, said in _BEGINNINGS if start[:_TOLD_BY].lower().startswith(begin)), None)


def check_content(file: Path) -> None:
    """Raise ModelFilesError for a broken link, and for a file whose content `foreign_content` recognizes."""
    if link := broken_link(file):
        raise ModelFilesError(link)
    if file.is_file():
        with file.open("rb") as stream:
            other = foreign_content(stream.read(_TOLD_BY))
        if other:
            raise ModelFilesError(f"{file}: {other}.")


def broken_link(path: Path) -> str | None:
    """The message for a broken link, which names its missing target; None if the path is no link."""
    if not path.is_symlink() or path.exists():
        return None
    return (
        f"{path}: it is a link to {path.readlink()}, which is not there: the download is unfinished, or its cache was "
        "cleaned. Download the model again."
    )


def weights_found(names: Collection[str]) -> str:
    """The files among `names` that hold weights of any kind, the first two by name."""
    found = sorted(name for name in names if name.endswith(_WEIGHTS))
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")


def remedy(names: Collection[str]) -> str | None:
    """Advice for a model that has these weight files but no model.safetensors or index; None without any."""
    own = [PurePosixPath(name).name for name in names if name.endswith(".safetensors")]
    if any(name.endswith(".gguf") for name in names):
        return "Such GGUF files hold parts of models; use the repository of the whole model."
    if ADAPTER_CONFIG in names or ADAPTER_WEIGHTS in names:
        return "These are adapters: give the model they were made for, and them with --adapter."
    if any(name.startswith("consolidated") for name in own):
        return (
            "Consolidated files name tensors in their own way; use those that transformers reads, model-*.safetensors."
        )
    if any(name.endswith(_PICKLES) for name in names):
        return "Such files can run code when read; use a repository with safetensors."
    if len(own) == 1:
        return f"If it is the whole model, rename it to {SINGLE_FILE}."
    return f"Without {INDEX} nothing says which of them belong together; download that too." if own else None
