"""Models by their name on the Hugging Face hub: what a name stands for, and what of it the cache lacks.

Files go to the cache of huggingface_hub, where other programs find them. That library takes a quarter of a second to
import, so it is imported where a name is met. No torch; nothing that a repository brings is run or unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.hub_errors import explained, not_in_cache
from loaders.hub_names import HubName
from loaders.needed_files import INDEX, SINGLE_FILE, needed_files, needs_index
from loaders.safetensors_files import (
    MAX_HEADER_BYTES,
    Checkpoint,
    StoredTensor,
    assemble,
    has_all_weights,
    header_bytes,
    parse_header,
    read_checkpoint,
    read_header,
    read_weight_map,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_HEADER_GUESS = 1 << 17  # of a shard of a few GB the header has some 10 kB, of 10,000 experts about 1 MB
_THREADS = 8


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; sha256 of those in its large-file storage, None of small ones."""

    name: str
    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class HubModel:
    """What a name stands for: one commit, and the files of it that a run needs.

    directory: where the cache has that commit's files. files: all that are needed; none where the hub was not asked
    since all are in the cache.
    """

    name: HubName
    commit: str
    directory: Path
    files: tuple[HubFile, ...] = ()

    @property
    def label(self) -> str:
        """For people: the model's own name, or where a revision was asked for org/name@commit."""
        short = self.name.repo.split("/")[1]
        return f"{self.name.repo}@{self.commit[:7]}" if self.name.revision else short

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """The files that the cache lacks, small ones first."""
        return tuple(file for file in self.files if not (self.directory / file.name).is_file())

    @property
    def missing_bytes(self) -> int:
        return sum(file.nbytes for file in self.missing)


def find_model(name: HubName, offline: bool = False) -> HubModel:
    """Ask the hub what `name` stands for, and put config.json and the index into the cache: two to five requests.

    Offline nothing is asked. Raises ModelFilesError or UnsupportedModelError that says what is wrong with the name, the
    repository or the connection.
    """
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        return _cached(name) or not_in_cache(name, _snapshot(name), by_option=offline)
    with explained(name, lambda: _cached(name) is not None):
        info = _ask(name)
        listed = dict(_listed(name, info.siblings or []))
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise ModelFilesError(f"{name}: the hub names no commit for it, but {info.sha!r:.80}.")
        with _refused(name):
            needed_files(listed, shards=())
        directory = _fetch_small(name, listed["config.json"], info.sha)
        shards: set[str] = set()
        if needs_index(listed):
            _fetch_small(name, listed[INDEX], info.sha)
            shards = set(read_weight_map(directory / INDEX).values())
    with _refused(name):
        files = tuple(listed[file] for file in needed_files(listed, shards))
    return HubModel(name, info.sha, directory, files)


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


def fetch_file(repo: str, file: str, revision: str) -> Path:
    """Let huggingface_hub put one file into its cache, or link what is there already; the path in the snapshot."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import silent_tqdm

    return Path(hf_hub_download(repo, file, revision=revision, tqdm_class=silent_tqdm))


def _ask(name: HubName) -> ModelInfo:
    """The hub's description of a model with its files; ValueError where the answer is none."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT  # seconds
    try:
        return HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=timeout)
    except (KeyError, TypeError, AttributeError) as error:  # how the library meets JSON of another shape
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _fetch_small(name: HubName, file: HubFile, commit: str) -> Path:
    """The directory of the snapshot, with a small file in it that the plan needs.

    By the branch's own name, so that the cache notes which commit it stands for.
    """
    if file.nbytes > MAX_HEADER_BYTES:
        raise ModelFilesError(f"{name}: its {file.name} has {file.nbytes:,} bytes, which no such file needs.")
    directory = fetch_file(name.repo, file.name, name.revision or "main").parent
    if directory.name != commit:
        raise ModelFilesError(f"{name}: it was changed while it was read. Run the same command again.")
    return directory


def _listed(name: HubName, siblings: list[RepoSibling]) -> Iterator[tuple[str, HubFile]]:
    """The files at the repository's top by name; ModelFilesError where the list is none that can be used."""
    for sibling in siblings:
        file, nbytes, lfs = sibling.rfilename, sibling.size, sibling.lfs
        if not isinstance(file, str) or "/" in file or "\\" in file:
            continue  # only what lies at the top is ever used
        sha256 = lfs.sha256 if lfs else None
        if type(nbytes) is not int or nbytes < 0 or not (sha256 is None or _SHA256.fullmatch(str(sha256))):
            raise ModelFilesError(f"{name}: the hub's list gives {file!r:.80} the size {nbytes!r} and hash {sha256!r}.")
        yield file, HubFile(file, nbytes, sha256)


@contextmanager
def _refused(name: HubName) -> Iterator[None]:
    """Puts the name before what is wrong with the files of a repository."""
    try:
        yield
    except (ModelFilesError, UnsupportedModelError) as error:
        raise type(error)(f"{name}: {error}") from error


def _snapshot(name: HubName) -> Path | None:
    """The directory of the commit that the cache last knew under this name, if it has at least config.json."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name.repo, "config.json", revision=name.revision or "main")
    return Path(config).parent if isinstance(config, str) else None


def _cached(name: HubName) -> HubModel | None:
    """The model if the cache has all that a run cannot do without."""
    snapshot = _snapshot(name)
    if snapshot is None or not has_all_weights(snapshot):
        return None
    return HubModel(name, snapshot.name, snapshot)


def _header(model: HubModel, file: HubFile) -> dict[str, StoredTensor]:
    path = model.directory / file.name
    if path.is_file():
        return read_header(path)
    try:
        start = read_range(model, file, 0, min(_HEADER_GUESS, file.nbytes)) if file.nbytes else b""
        end = 8 + header_bytes(path, start, file.nbytes)
        if end > len(start):
            start += read_range(model, file, len(start), end)
        return parse_header(path, start[8:end], file.nbytes)
    except ModelFilesError as error:
        raise ModelFilesError(f"{model.name} on the hub: {error}") from error


def read_range(model: HubModel, file: HubFile, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file on the hub, and no more of it. Raises what `explained` explains."""
    text = bytearray()
    with open_range(model, file, start, stop) as response:
        skipped = start if response.status_code == 200 else 0
        for chunk in response.iter_bytes():
            text += chunk[: skipped + stop - start - len(text)]
            if len(text) == skipped + stop - start:
                return bytes(text[skipped:])
    raise ModelFilesError(f"{model.name}: the hub sent less of {file.name} than the {stop - start} bytes at {start}.")


@contextmanager
def open_range(model: HubModel, file: HubFile, start: int, stop: int) -> Iterator[Any]:
    """The open response to a request for bytes `start` to `stop` of a file: status 206, or 200 for the whole file.

    Raises ModelFilesError if the hub sends other bytes, and what `explained` explains.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(model.name.repo, file.name, revision=model.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        stated = response.headers.get("Content-Range", "")
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stated)
        if response.status_code != 200 and not (sent and int(sent[1]) == start and sent[2] in ("*", str(file.nbytes))):
            raise ModelFilesError(
                f"{model.name}: asked for {file.name} from byte {start} of {file.nbytes}, the hub answered with "
                f"{stated!r:.80} ({response.status_code}). Run the same command again."
            )
        yield response
