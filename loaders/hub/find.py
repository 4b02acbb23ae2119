"""Resolves a model's name on the Hugging Face hub, and finds the files that the cache lacks.

Files go to the cache of huggingface_hub, where other programs find them. Importing that library takes 0.25 s, so it is
imported only for names. No torch; nothing from a repository is run or unpickled.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.adapter_config import adapter_alone, base_of
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import ADAPTER_CONFIG
from loaders.formats.side_files import SIDE_FILES
from loaders.gguf.choice import choose_gguf, gguf_models
from loaders.gguf.names import SUFFIX
from loaders.hub.cache import cached_snapshot, gguf_sizes, note_commit, repository_directory
from loaders.hub.errors import explained, network_forbidden, not_in_cache
from loaders.hub.model import HubFile, HubModel
from loaders.hub.names import HubName
from loaders.hub.needed_files import (
    INDEX,
    SINGLE_FILE,
    TOKEN_FILES,
    has_safetensors,
    is_chat_template,
    needed_files,
    needed_for_gguf,
    needs_index,
)
from loaders.safetensors_files.headers import MAX_HEADER_BYTES, has_all_weights, is_plain_path, read_weight_map

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_NEWEST = "main"


def find_model(name: HubName, offline: bool = False, option: str = "--model") -> HubModel:
    """Resolve `name` on the hub in two to five requests, which put config.json and the index into the cache.

    Offline it makes no request. option: the command-line option for such a name, quoted in errors. Raises
    ModelFilesError or UnsupportedModelError for problems with the name, the repository or the connection.
    """
    from huggingface_hub import constants

    typed = f"{option} {name.repository}"
    if offline or constants.HF_HUB_OFFLINE:
        try:
            model = _cached(name, typed)
        except ModelFilesError as error:
            raise ModelFilesError(f"{error}\n{network_forbidden(by_option=offline)}") from error
        return model or not_in_cache(name, _snapshot(name), by_option=offline)
    with explained(name, lambda: _is_cached(name)):
        info = _ask(name)
        listed = dict(_listed(name, info.siblings or []))
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise ModelFilesError(f"{name}: the hub names no commit for it, but {info.sha!r:.80}.")
        models = gguf_models({file.name: file.nbytes for file in listed.values()})
        if name.wanted or (models and not has_safetensors(listed)):
            with _refused(name):
                chosen = choose_gguf(models, name.wanted, typed)
            needed = needed_for_gguf(listed, chosen.files)
            return _gguf_model(name, info.sha, tuple(listed[file] for file in needed), chosen.files[0])
        return _safetensors_model(name, info.sha, listed)


def fetch_file(repo: str, file: str, revision: str) -> Path:
    """Let huggingface_hub fetch or link one file into its cache; returns the path in the snapshot."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import silent_tqdm

    return Path(hf_hub_download(repo, file, revision=revision, tqdm_class=silent_tqdm))


def fetch_vocabulary(model: HubModel) -> None:
    """Fetch the vocabulary files into the cache: a plan with a draft compares those of both models."""
    with explained(model.name):
        for file in model.missing:
            if file.name in TOKEN_FILES and file.nbytes <= MAX_HEADER_BYTES:
                fetch_file(model.name.repo, file.name, model.commit)


def note_downloaded(model: HubModel) -> None:
    """Let the cache find the complete model by its name without asking the hub. Raises OSError."""
    note_commit(model.directory, model.name.revision or _NEWEST)


def _safetensors_model(name: HubName, commit: str, listed: Mapping[str, HubFile]) -> HubModel:
    if ADAPTER_CONFIG in listed and not has_safetensors(listed):
        base = base_of(_fetch_small(name, listed[ADAPTER_CONFIG], commit))
        raise UnsupportedModelError(f"{adapter_alone(str(name), base)}\n  hf download {name.repo}   gets it first")
    if ADAPTER_CONFIG in listed:
        warnings.warn(
            f"{name}: the adapter that lies beside the model is left out; --adapter applies one", stacklevel=2
        )
    with _refused(name):
        needed_files(listed, shards=())
    directory = _fetch_small(name, listed["config.json"], commit)
    for file in SIDE_FILES.keys() & listed.keys():
        _fetch_small(name, listed[file], commit)
    shards: set[str] = set()
    if needs_index(listed):
        _fetch_small(name, listed[INDEX], commit)
        shards = set(read_weight_map(directory / INDEX).values())
    with _refused(name):
        files = tuple(listed[file] for file in needed_files(listed, shards))
    return HubModel(name, commit, directory, files)


def _gguf_model(name: HubName, commit: str, files: tuple[HubFile, ...], first: str) -> HubModel:
    """Resolve a GGUF name without fetching: what a plan needs is in the files' headers."""
    model = HubModel(name, commit, _repository(name) / "snapshots" / commit, files, first)
    if not model.missing:
        note_downloaded(model)
    return model


def _ask(name: HubName) -> ModelInfo:
    """The hub's description of a model with its files; ValueError for an invalid answer."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT  # seconds
    try:
        return HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=timeout)
    except (KeyError, TypeError, AttributeError) as error:  # what the library raises for JSON of another shape
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _fetch_small(name: HubName, file: HubFile, commit: str) -> Path:
    """The directory of the snapshot, with a small file in it that the plan needs.

    Requested by the branch's name, so that the cache records its commit.
    """
    if file.nbytes > MAX_HEADER_BYTES:
        raise ModelFilesError(f"{name}: its {file.name} has {file.nbytes:,} bytes, which no such file needs.")
    directory = fetch_file(name.repo, file.name, name.revision or _NEWEST).parent
    if directory.name != commit:
        raise ModelFilesError(f"{name}: it was changed while it was read. Run the same command again.")
    return directory


def _listed(name: HubName, siblings: list[RepoSibling]) -> Iterator[tuple[str, HubFile]]:
    """The usable files by name; ModelFilesError for an invalid list."""
    for sibling in siblings:
        file, nbytes, lfs = sibling.rfilename, sibling.size, sibling.lfs
        if not isinstance(file, str) or not _has_usable_name(file):
            continue
        sha256 = lfs.sha256 if lfs else None
        if type(nbytes) is not int or nbytes < 0 or not (sha256 is None or _SHA256.fullmatch(str(sha256))):
            raise ModelFilesError(f"{name}: the hub's list gives {file!r:.80} the size {nbytes!r} and hash {sha256!r}.")
        yield file, HubFile(file, nbytes, sha256)


def _has_usable_name(file: str) -> bool:
    """Whether a file lies at the top, or, for weights and chat templates only, in a directory below.

    GGUF files may lie one directory below, as in the cache.
    """
    folders = file.count("/")
    below = file.endswith(".safetensors") or (file.endswith(SUFFIX) and folders == 1) or is_chat_template(file)
    return is_plain_path(file) and (folders == 0 or below)


@contextmanager
def _refused(name: HubName) -> Iterator[None]:
    """Prefixes errors about a repository's files with its name."""
    try:
        yield
    except (ModelFilesError, UnsupportedModelError) as error:
        raise type(error)(f"{name}: {error}") from error


def _repository(name: HubName) -> Path:
    from huggingface_hub import constants

    return repository_directory(Path(constants.HF_HUB_CACHE), name.repo)


def _snapshot(name: HubName) -> Path | None:
    """The snapshot of the commit that the cache last recorded for this name."""
    return cached_snapshot(_repository(name), name.revision or _NEWEST)


def _cached(name: HubName, typed: str) -> HubModel | None:
    """The model if the cache has every file that a run requires, by the same rules as for the repository.

    Raises ModelFilesError if it has GGUF models and none or several of them match.
    """
    snapshot = _snapshot(name)
    if snapshot is None:
        return None
    if not name.wanted and any((snapshot / file).is_file() for file in (SINGLE_FILE, INDEX)):
        is_whole = (snapshot / "config.json").is_file() and has_all_weights(snapshot)
        return HubModel(name, snapshot.name, snapshot) if is_whole else None
    whole = [model for model in gguf_models(gguf_sizes(snapshot)) if not model.missing]
    if not whole:
        return None
    with _refused(name):
        chosen = choose_gguf(whole, name.wanted, typed, holder="the cache of downloads")
    return HubModel(name, snapshot.name, snapshot, gguf=chosen.files[0])


def _is_cached(name: HubName) -> bool:
    try:
        return _cached(name, "") is not None
    except ModelFilesError:
        return False
