"""Downloads a model's files into the cache of huggingface_hub, and resumes interrupted downloads.

That library discards a partial file when a download is interrupted, which for a shard of 5 GB is minutes of work. So
files of the large-file storage are fetched here: appended to blobs/SHA256.incomplete until complete, and renamed if the
hash is right; the library then links them into the snapshot.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from loaders.errors import ModelFilesError
from loaders.hub.errors import explained
from loaders.hub.find import fetch_file, note_downloaded
from loaders.hub.model import HubFile, HubModel
from loaders.hub.ranges import open_range

CONNECTIONS = 8
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each retry; starts over once bytes have arrived
RETRIED = (408, 429, 500, 502, 503, 504)
_CHUNK_BYTES = 1 << 18

OnBytes = Callable[[int], None]
"""Called, by one thread at a time, with the number of new bytes; negative if a file starts over."""


def download(model: HubModel, on_bytes: OnBytes) -> None:
    """Download the files of `model` that the cache lacks; returns when they are complete.

    Bytes of partial files are reported at once. Raises ModelFilesError; then, and after an interruption, partial files
    stay for the next run.
    """
    with explained(model.name):
        _Download(model, on_bytes).run(model.missing)
        note_downloaded(model)


def begun_bytes(model: HubModel) -> int:
    """Bytes of missing files that an earlier run has downloaded."""
    return sum(_size(_partial(model, file)) for file in model.missing if file.sha256)


class _Stopped(Exception):
    """Another thread has failed, or the user has interrupted."""


class _Download:
    """Threads that download the files of one model."""

    def __init__(self, model: HubModel, on_bytes: OnBytes):
        self._model, self._on_bytes = model, on_bytes
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._files: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
        self._error: Exception | None = None

    def run(self, files: Sequence[HubFile]) -> None:
        for file in files:
            self._files.put(file)
        # Daemons: a thread that waits for the network must not keep the program from ending.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(CONNECTIONS, len(files)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()
        if self._error:
            raise self._error

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._fetch(self._files.get_nowait())
            except (queue.Empty, _Stopped):
                return
            except Exception as error:  # re-raised in the waiting thread
                self._error = self._error or error
                self._stop.set()

    def _fetch(self, file: HubFile) -> None:
        if file.sha256 is None:
            fetch_file(self._model.name.repo, file.name, self._model.commit)
            self._count(file.nbytes)
            return
        from huggingface_hub.utils import WeakFileLock

        blob = _blob(self._model, file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        storage = blob.parent.parent
        lock = storage.parent / ".locks" / storage.name / f"{blob.name}.lock"  # huggingface_hub takes the same lock
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                self._count(file.nbytes)
            else:
                partial = _partial(self._model, file)
                with partial.open("a+b", buffering=0) as output:
                    self._complete(file, _PartialFile(output, file.nbytes, self._count))
                partial.replace(blob)
        fetch_file(self._model.name.repo, file.name, self._model.commit)

    def _complete(self, file: HubFile, part: _PartialFile) -> None:
        """Request the rest of a file until it is complete; ModelFilesError if its hash is not the one the hub lists."""
        tries, most = 0, part.have
        while part.have < file.nbytes:
            failure = self._ask_for_rest(file, part)
            tries, most = (0, part.have) if part.have > most else (tries + 1, most)
            if tries > len(WAITS):
                raise failure or ModelFilesError(f"{self._model.name}: the hub sends nothing of {file.name}.")
            if part.have < file.nbytes and self._stop.wait(WAITS[max(tries - 1, 0)]):
                raise _Stopped
        if part.sha256 != file.sha256:
            part.restart()
            raise ModelFilesError(
                f"{self._model.name}: {file.name} was damaged on its way: its hash is not the one that the hub lists. "
                "Run the same command again: only this file begins anew."
            )

    def _ask_for_rest(self, file: HubFile, part: _PartialFile) -> Exception | None:
        """Make one request; returns the error that cut it short if a retry may help."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        try:
            with open_range(self._model, file, part.have, file.nbytes) as response:
                if response.status_code == 200:
                    part.restart()  # the server ignores ranges
                for chunk in response.iter_bytes():  # unbuffered: a broken connection loses nothing
                    if part.have + len(chunk) > file.nbytes:
                        raise ModelFilesError(f"{self._model.name}: the hub sends more of {file.name} than it lists.")
                    part.append(chunk)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in RETRIED:
                raise
            return error
        return None

    def _count(self, nbytes: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._on_bytes(nbytes)


class _PartialFile:
    """A partial file, open at its end, with the hash of its bytes."""

    def __init__(self, output: io.FileIO, most: int, on_bytes: OnBytes):
        """Hash what an earlier run has left, unless that is more than the `most` bytes of the whole file."""
        self._output, self._on_bytes = output, on_bytes
        self._hash, self.have = hashlib.sha256(), 0
        if output.seek(0, os.SEEK_END) > most:
            output.truncate(0)
        output.seek(0)
        while chunk := output.read(_CHUNK_BYTES):
            self._take(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def append(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:  # an unbuffered file may write fewer bytes than given
            view = view[self._output.write(view) :]
        self._take(chunk)

    def restart(self) -> None:
        """Empty the file."""
        self._output.truncate(0)
        self._on_bytes(-self.have)
        self._hash, self.have = hashlib.sha256(), 0

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.have += len(chunk)
        self._on_bytes(len(chunk))


def _blob(model: HubModel, file: HubFile) -> Path:
    assert file.sha256
    return model.directory.parent.parent / "blobs" / file.sha256


def _partial(model: HubModel, file: HubFile) -> Path:
    blob = _blob(model, file)
    return blob.with_name(f"{blob.name}.incomplete")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
