"""Headers of files that are not downloaded yet, read from the Hugging Face hub: what a plan is made from. No torch."""

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

_HEADER_GUESS = 1 << 17  # of a shard of a few GB the header has some 10 kB, of 10,000 experts about 1 MB
_GGUF_GUESS = 1 << 20  # the first file has the vocabulary: of 32,000 tokens less than this, of 128,000 some 8 MB
_MOST_BYTES = MAX_HEADER_BYTES  # of all files of a model together
_THREADS = 8


def read_hub_checkpoint(model: HubModel) -> Checkpoint:
    """As `read_checkpoint`, with the headers of files that the cache lacks read from the hub: a request or two each.

    The tensors' files are where these will be once downloaded, and the sizes are checked against the hub's list.
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
    """As `read_gguf`, of a model of whose files the cache lacks some: what is looked at of those comes from the hub.

    The tensors' files are where these will be once downloaded, and the sizes checked against are those that the hub
    lists. Nothing is written to disk, so a header is never taken for the file.
    """
    content = _HubContent(model)
    content.begin()
    with on_the_hub(model):
        return read_gguf(model.path, content)


@contextmanager
def on_the_hub(model: HubModel) -> Iterator[None]:
    """Puts the model's name before what is wrong with a file that is not on disk; not twice before a connection's."""
    try:
        yield
    except (ModelFilesError, UnsupportedModelError) as error:
        if str(error).startswith(f"{model.name}: "):
            raise
        raise type(error)(f"{model.name} on the hub: {error}") from error


class _HubContent:
    """A model's GGUF files; of those that the cache lacks, the beginnings are kept in memory as they are asked for."""

    def __init__(self, model: HubModel):
        self._model = model
        self._listed = {model.directory / file.name: file for file in model.missing}
        self._begun = dict.fromkeys(self._listed, b"")
        self._asked = 0  # bytes of all requests
        self._asking = Lock()

    is_local = False

    def begin(self) -> None:
        """Ask for the beginnings of all files at once."""
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
        with explained(self._model.name):  # also of what is asked for later on: the config takes some small tensors
            with self._asking:  # several files are asked for at once
                self._asked += stop - start
                if self._asked > _MOST_BYTES:
                    raise ModelFilesError(
                        f"{file.name}: the headers of its model need more than {_MOST_BYTES:,} bytes."
                    )
            more = read_range(self._model, self._listed[file], start, stop)
        if start == len(begun):
            self._begun[file] = begun + more
        return more
