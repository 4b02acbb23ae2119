"""The server in a thread of this process, over any runtime, and a client that sees every byte."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn

from offload_runtime.serve.app import make_app
from offload_runtime.serve.endpoints import make_service
from offload_runtime.serve.http.guard import Access
from offload_runtime.serve.server import SETTINGS, bind

PATIENCE = 120.0  # seconds after which a test fails instead of waiting
OPEN = Access(None, loopback=True)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


class Served:
    """A context manager. queue, model, access: of the server."""

    def __init__(self, runtime: Any, queue: int = 8, model: str | None = None, access: Access = OPEN):
        self.runtime = runtime
        self.service = make_service(runtime, model, "tiny", queue)
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            make_app(self.service, access),
            **SETTINGS,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)

    @property
    def engine(self) -> Any:
        return self.service.engine

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def __enter__(self) -> "Served":
        self.engine.start()
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self.engine.cut()
        self._thread.join(PATIENCE)
        self.engine.join()
        self._socket.close()
        assert not self._thread.is_alive()

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """The answer to one request. body: sent as JSON, unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method, path, _bytes(body), {name.replace("_", "-"): text for name, text in headers.items()}
            )
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        return self.request("POST", path, body, **headers)

    def chat(self, text: str, **more: Any) -> Answer:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more})

    def ask_only(self, text: str, **more: Any) -> http.client.HTTPConnection:
        """A connection on which a reply was asked for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = {"messages": [{"role": "user", "content": text}], **more}
        connection.request("POST", "/v1/chat/completions", _bytes(body))
        return connection

    def stream(self, path: str, body: dict[str, Any]) -> "Stream":
        return Stream(self.port, path, {**body, "stream": True})

    def stream_chat(self, text: str, **more: Any) -> "Stream":
        return self.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more})


class Stream:
    """An answer in server-sent events, read as it comes. A context manager; leaving it closes the connection."""

    def __init__(self, port: int, path: str, body: object):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._connection.request("POST", path, _bytes(body))
        self.response = self._connection.getresponse()

    def frames(self) -> Iterator[str]:
        """Events and comments as they were sent, without the empty line between them."""
        lines = []
        while line := self.response.readline():
            if line == b"\n":
                yield b"\n".join(lines).decode()
                lines = []
            else:
                lines.append(line.rstrip(b"\n"))
        assert not lines, "the last event has ended"

    def data(self) -> Iterator[Any]:
        """The JSON of all events; the last one must be [DONE]."""
        frames = [frame for frame in self.frames() if not frame.startswith(":")]
        assert all(frame.startswith("data: ") for frame in frames) and frames[-1] == "data: [DONE]"
        return (json.loads(frame.removeprefix("data: ")) for frame in frames[:-1])

    def close(self) -> None:
        """Leave."""
        self.response.close()
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bytes(body: object) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def wait_until(condition: Any) -> None:
    """Wait for what must come; fail after a time that no machine takes."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
