"""Error messages between a name and its files: what went wrong, why, and what to run instead."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from loaders.errors import ModelFilesError
from loaders.hub.names import HubName
from loaders.message_text import first_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explained(name: HubName, is_cached: Callable[[], bool] | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises in the block into a ModelFilesError.

    is_cached: tells whether --offline would work, called if the hub cannot be reached; None if part of the model
    already came from the hub.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:  # ValueError: invalid JSON, such as a proxy's page
        raise ModelFilesError(_explanation(name, error, is_cached)) from error


def not_in_cache(name: HubName, snapshot: Path | None, by_option: bool) -> NoReturn:
    """Raise ModelFilesError for what the cache lacks while the network may not be used."""
    from huggingface_hub import constants

    lacks = "has only a part of it: some of the weights are missing" if snapshot else "does not hold it"
    raise ModelFilesError(
        f"{name}: there is no such directory, and the cache of downloads ({constants.HF_HUB_CACHE}) {lacks}.\n"
        f"{network_forbidden(by_option)}"
    )


def network_forbidden(by_option: bool) -> str:
    """The line that says why nothing can be downloaded, and how to change that."""
    why = "--offline" if by_option else "HF_HUB_OFFLINE"
    remedy = "without --offline" if by_option else "after `unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE`"
    return f"  {why} forbids the network: run the same command once {remedy}"


def _explanation(name: HubName, error: Exception, is_cached: Callable[[], bool] | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it only says that the cache has no copy; its cause says why the download failed
    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{name.repo}"
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: its licence has to be accepted before it can be downloaded.\n"
            f"  {page}   accept it there\n"
            "  hf auth login   then log in with a token of the same account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name}: there is no such directory here, and no such model on {hub}, or it is private.\n"
            f"  {hub}/models?search={name.repo.split('/')[1]}   shows names that are alike\n"
            "  hf auth login   for a private model"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name}: {name.repo} has no branch, tag or commit {name.revision!r}.\n  {page}/tree/main   lists them"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{name}: a file that the hub lists is not there ({first_line(error)}). Run the same command again."
    if isinstance(error, HfHubHTTPError):
        return _refusal(name, error.response.status_code, hub, is_cached)
    if isinstance(error, HFValidationError):
        return f"{name}: there is no such directory, and it cannot be a name on {hub}: {first_line(error)}"
    if isinstance(error, HTTPError | ConnectionError | LocalEntryNotFoundError):
        neither = "there is no such directory, and " if is_cached else ""
        return f"{name}: {neither}{hub} cannot be reached ({first_line(error)}).{_without_hub(is_cached)}"
    if isinstance(error, OSError):
        return _disk(name, error, constants.HF_HUB_CACHE)
    return f"{name}: what {hub} answered is no answer of a hub ({first_line(error)}). A proxy may be in between."


def _refusal(name: HubName, status: int, hub: str, is_cached: Callable[[], bool] | None) -> str:
    if status in (401, 403):
        return (
            f"{name}: {hub} refuses your token ({status}).\n"
            "  hf auth login   with a token that may read this model\n"
            "  hf auth logout   for a model that anyone may read"
        )
    if status == 429:
        return (
            f"{name}: {hub} takes no more requests for now (429); wait some minutes.\n"
            "  hf auth login   those who are logged in may ask for more"
        )
    return f"{name}: {hub} fails ({status}).{_without_hub(is_cached)}"


def _without_hub(is_cached: Callable[[], bool] | None) -> str:
    if is_cached and is_cached():
        return "\n  --offline   uses the copy that was downloaded earlier"
    return " Run the same command again later: what was downloaded is kept, and goes on from there."


def _disk(name: HubName, error: OSError, cache: str) -> str:
    where = error.filename or cache
    if error.errno in _FULL:
        return (
            f"{name}: the disk is full ({where}); what is downloaded so far is kept.\n"
            "  hf cache ls   shows what can be removed with hf cache rm\n"
            "  HF_HOME=DIR   before the command: downloads go to another disk"
        )
    if error.errno in _READ_ONLY:
        return (
            f"{name}: the cache of downloads cannot be written to ({where}: {error.strerror}).\n"
            "  HF_HOME=DIR   before the command: downloads go to another directory"
        )
    return (
        f"{name}: it cannot be downloaded ({first_line(error)}). Run the same command again; what is complete is kept."
    )
