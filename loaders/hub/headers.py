"""Reads headers of files that are not downloaded yet from the Hugging Face hub, for planning. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf.content import DISK
from loaders.gguf.header import MAX_HEADER_BYTES, GgufFile, read_gguf
from loaders.hub.errors import explained
from loaders.hub.model import HubFile, HubModel
from loaders.hub.needed_files import INDEX, SINGLE_FILE
from loaders.hub.ranges import read_range
from loaders.safetensors_files.headers import (
    Checkpoint,
    StoredTensor,
    assemble,
    header_bytes,
    parse_header,
    read_checkpoint,
    read_header,
    read_weight_map,
)

_HEADER_GUESS = 1 << 17  # headers take about 10 kB for a shard of a few GB, 1 MB for 10,000 experts
_GGUF_GUESS = 1 << 20  # the first file has the vocabulary: 32,000 tokens take less than this, 128,000 about 8 MB
_MOST_BYTES = MAX_HEADER_BYTES  # of all files of a model together
_THREADS = 8


def read_hub_checkpoint(model: HubModel) -> Checkpoint:
    """Like `read_checkpoint`, but reads headers that the cache lacks from the hub: one or two requests each.

    Tensors name the paths that the files will have once downloaded; sizes are checked against the hub's list.
    """
    files = {file.name: file for file in model.files if file.name.endswith(".safetensors")}
    if not any(file in files.values() for file in model.missing):
        return read_checkpoint(model.directory)
    weight_map = {} if SINGLE_FILE in files else read_weight_map(model.directory / INDEX)
    with explained(model.name), ThreadPoolExecutor(_THREADS) as pool:
        headers = dict(zip(files, pool.map(lambda file: _header(model, file), files.values())))
    return assemble(model.directory, weight_map, headers)


def _header(model: HubModel, file: HubFile) -> Mapping[str, StoredTensor]:
    path = model.directory / file.name
    if path.is_file():
        return read_header(path)
    with on_the_hub(model):
        start = read_range(model, file, 0, min(_HEADER_GUESS, file.nbytes)) if file.nbytes else b""
        end = 8 + header_bytes(path, start, file.nbytes)
        if end > len(start):
            start += read_range(model, file, len(start), end)
        return parse_header(path, start[8:end], file.nbytes)


def read_hub_gguf(model: HubModel) -> GgufFile:
    """Like `read_gguf`, but reads the parts it needs of files that the cache lacks from the hub.

    Tensors name the paths that the files will have once downloaded; sizes are checked against the hub's list. Nothing
    is written to disk, so a header is never mistaken for the file.
    """
    content = _HubContent(model)
    content.begin()
    with on_the_hub(model):
        return read_gguf(model.path, content)


@contextmanager
def on_the_hub(model: HubModel) -> Iterator[None]:
    """Prefixes errors about a file that is not on disk with the model's name, unless they have it already."""
    try:
        yield
    except (ModelFilesError, UnsupportedModelError) as error:
        if str(error).startswith(f"{model.name}: "):
            raise
        raise type(error)(f"{model.name} on the hub: {error}") from error


class _HubContent:
    """A model's GGUF files; memory keeps the requested beginnings of those that the cache lacks."""

    def __init__(self, model: HubModel):
        self._model = model
        self._listed = {model.directory / file.name: file for file in model.missing}
        self._begun = dict.fromkeys(self._listed, b"")
        self._asked = 0  # bytes of all requests
        self._asking = Lock()

    is_local = False

    def begin(self) -> None:
        """Request the beginnings of all files in parallel."""
        with ThreadPoolExecutor(_THREADS) as pool:
            files = [file for file in self._listed if file.suffix == ".gguf"]
            list(pool.map(lambda file: self.read(file, 0, min(self.first_bytes(file), self.size(file))), files))

    def first_bytes(self, file: Path) -> int:
        return _GGUF_GUESS if file == self._model.path else _HEADER_GUESS

    def has(self, file: Path) -> bool:
        return file in self._listed or DISK.has(file)

    def size(self, file: Path) -> int:
        return self._listed[file].nbytes if file in self._listed else DISK.size(file)

    def read(self, file: Path, start: int, stop: int) -> bytes:
        if file not in self._listed:
            return DISK.read(file, start, stop)
        begun = self._begun[file]
        if stop <= len(begun):
            return begun[start:stop]
        with explained(self._model.name):  # later reads count too: the config takes some small tensors
            with self._asking:  # several files are requested in parallel
                self._asked += stop - start
                if self._asked > _MOST_BYTES:
                    raise ModelFilesError(
                        f"{file.name}: the headers of its model need more than {_MOST_BYTES:,} bytes."
                    )
            more = read_range(self._model, self._listed[file], start, stop)
        if start == len(begun):
            self._begun[file] = begun + more
        return more
