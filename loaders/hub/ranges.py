"""Reads parts of files on the Hugging Face hub with range requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loaders.errors import ModelFilesError
from loaders.hub.model import HubFile, HubModel


def read_range(model: HubModel, file: HubFile, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file on the hub. Raises the errors of `explained`."""
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
    """The open response to a request for bytes [start, stop) of a file: status 206, or 200 for the whole file.

    Raises ModelFilesError if the hub sends other bytes, and the errors of `explained`.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(model.name.repo, file.name, revision=model.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without receiving a byte
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
