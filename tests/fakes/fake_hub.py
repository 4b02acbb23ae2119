"""A server on loopback that speaks as much of the hub's protocol as a download asks for: no network, no real hub.

Model info with the list of files, `resolve` with HEAD and GET, ranges, redirects of large files to another origin as to
a content network, commits, branches, errors with the headers that tell them apart, and connections that break.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

HEADER = 1 << 17  # bytes that are asked for to read a header; longer answers are weights
WEIGHTS = (".safetensors", ".gguf", ".bin")
LARGE = (*WEIGHTS, "tokenizer.json")  # files of large-file storage


@dataclass(frozen=True)
class Sparse:
    """A file of any size that is zeros behind its beginning: for the headers of large models."""

    head: bytes
    nbytes: int

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.nbytes)
        return self.head[start:stop] + bytes(max(0, stop - max(start, len(self.head))))


Content = bytes | Sparse


def commit_of(files: Mapping[str, Content]) -> str:
    """A commit's name: of its content, as git makes it."""
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + _known(content))
    return digest.hexdigest()


def _known(content: Content) -> bytes:
    return content.head if isinstance(content, Sparse) else content


@dataclass
class Repository:
    """Commits of one model, by name; `branches` says which one each branch or tag stands for.

    gated: the status that those get who may not read it. sizes: what the list says where it is not the truth.
    """

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def push(self, files: Mapping[str, Content], branch: str = "main") -> str:
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class FakeHub:
    """What the server knows, how it misbehaves, and what it was asked.

    break_after: bytes of a weight file after which the connection ends, once for each entry. failures: statuses that
    the next requests for weights get. ranges: whether it knows range requests. damage: flip a bit of every weight file.
    page: what every request gets instead. hold: set to let weights flow; where it is not, answers of more than
    `header_bytes` stop after their first half, until it is.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    ranges: bool = True
    damage: bool = False
    page: bytes | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    with_token: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    header_bytes: int = HEADER
    url: str = ""
    content_url: str = ""

    def __post_init__(self) -> None:
        self.hold.set()

    def add(self, name: str, source: Path | Mapping[str, Content]) -> str:
        """Publish a directory, or files by name, as the newest commit of a model; its commit."""
        files = source if isinstance(source, Mapping) else {file.name: file.read_bytes() for file in source.iterdir()}
        return self.repositories.setdefault(name, Repository()).push(files)

    def answer(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Be the hub that this process asks, with a cache of its own; no token of the user's leaves for it."""
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables for a program that asks this hub, with HF_HOME and other caches in `home`."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))},
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "SEQUOIA_OFFLOAD_CACHE": str(home / "measured"),
        }

    def asked(self, method: str, pattern: str) -> list[tuple[str, str, str | None]]:
        """The requests so far whose path matches."""
        return [request for request in self.requests if request[0] == method and re.search(pattern, request[1])]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub that listens for the block; `url` is what HF_ENDPOINT has to be."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.content_url = f"http://localhost:{server.server_port}"  # another host, as far as a client can tell
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that leaves in the middle is no fault
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, unquote(path), self.headers.get("Range")))
        if self.headers.get("Authorization"):
            self.hub.with_token.append(path)
        if self.hub.page is not None:
            self._send(200, self.hub.page, {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], unquote(match[2] or "main"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/content/([^/]+/[^/]+)/([^/]+)/(.+)", unquote(path)):
            content = self.hub.repositories[match[1]].commits[match[2]][match[3]]
            self._content(content, is_weights=match[3].endswith(WEIGHTS))
        else:
            self._refuse(404, "EntryNotFound")

    def _known(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")  # as the hub answers those who are not logged in
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def _info(self, name: str, revision: str) -> None:
        if (known := self._known(name, revision)) is None:
            return
        repository, commit = known
        siblings = [
            self._listed(file, content, repository.sizes.get(file))
            for file, content in repository.commits[commit].items()
        ]
        self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def _listed(self, name: str, content: Content, size: int | None) -> dict[str, Any]:
        size = len(content) if size is None else size
        entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": hashlib.sha1(_known(content)).hexdigest()}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(_known(content)).hexdigest()
            entry["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
        return entry

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if (known := self._known(name, revision)) is None:
            return
        repository, commit = known
        if repository.gated:
            self._refuse(repository.gated, "GatedRepo")
            return
        content = repository.commits[commit].get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        large = file.endswith(LARGE)
        etag = (hashlib.sha256 if large else hashlib.sha1)(_known(content)).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if not large:
            self._send(200, content[:], headers)
            return
        target = f"{self.hub.content_url}/content/{name}/{commit}/{file}"
        self._send(302, b"", {**headers, "X-Linked-Etag": f'"{etag}"', "Location": target})

    def _content(self, content: Content, is_weights: bool) -> None:
        """A part of a large file, or all of it; the place where things go wrong."""
        if self.hub.failures and self.command == "GET":
            self._refuse(self.hub.failures.pop(0), "")
            return
        if self.hub.damage:
            content = content[:-1] + bytes([content[-1:][0] ^ 1])
        start, stop, headers = 0, len(content), {"ETag": '"content"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        ranged = bool(asked) and self.hub.ranges
        if asked and ranged:
            start, stop = int(asked[1]), min(int(asked[2] or stop - 1) + 1, stop)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206 if ranged else 200, content[start:stop], headers, breaks=is_weights)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        message = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"{}", {**message, **(headers or {})})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], breaks: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub, first = self.hub, len(body) // 2 if breaks and len(body) > self.hub.header_bytes else len(body)
        if breaks and hub.break_after:
            body = body[: hub.break_after.pop(0)]
            self.close_connection = True
            first = len(body)
        self._write(body[:first], breaks)
        if first < len(body):
            hub.hold.wait()
            self._write(body[first:], breaks)

    def _write(self, body: bytes, counted: bool) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        if counted:
            self.hub.sent_bytes += len(body)
