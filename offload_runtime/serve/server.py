"""Listens, and leaves in order: after Ctrl-C or SIGTERM replies may end, then they are cut; a second one is final."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from offload_runtime.errors import UsageError
from offload_runtime.serve.engine import Engine
from offload_runtime.serve.http.protocol import TimedProtocol

BACKLOG = 128
MOST_CONNECTIONS = 512  # below the usual limit of 1,024 open files, of which weights need some
LEAVE_WITHIN = 3  # seconds after replies were cut, for clients that read slowly
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Raises UsageError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such address ({error})") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"port {port} of {host} cannot be used ({error.strerror}).\n"
            "  --port N takes another one, --port 0 a free one"
        ) from error
    return bound


SETTINGS: Any = {  # of uvicorn: nothing but HTTP/1.1, no word about the server, no trust in headers of proxies
    **{
        "lifespan": "off",
        "ws": "none",
        "http": TimedProtocol,
        "loop": "asyncio",
        "log_config": None,
        "access_log": False,
    },
    **{"server_header": False, "proxy_headers": False},
}


def url_of(bound: socket.socket, host: str) -> str:
    """The address for a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}"


def run_server(
    app: ASGIApp, bound: socket.socket, engine: Engine, grace: float, note: Callable[[str], None], greeting: str
) -> int:
    """Serve until a signal or a failure of the engine; return the exit code. The engine runs meanwhile.

    grace: seconds that replies have to end. greeting: noted once requests are answered. Only for the main thread.
    """
    config = uvicorn.Config(
        app,
        backlog=BACKLOG,
        limit_concurrency=MOST_CONNECTIONS,
        **SETTINGS,
        timeout_graceful_shutdown=int(grace) + LEAVE_WITHIN,
    )
    server = _Server(config, engine, grace, note, greeting)
    engine.start()
    try:
        asyncio.run(server.serve([bound]))
    finally:
        engine.cut()
        engine.join()
    return 1 if engine.has_failed else server.exit_code


class _Server(uvicorn.Server):
    """Ends with the engine, and on signals."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, grace: float, note: Callable[[str], None], greeting: str
    ):
        super().__init__(config)
        self._engine, self._grace, self._note, self._greeting = engine, grace, note, greeting
        self.exit_code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but for its handlers."""
        loop = asyncio.get_running_loop()
        heard = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores one
        for one in heard:
            loop.add_signal_handler(one, self._on_signal, one)
        try:
            yield
        finally:
            for one in heard:
                loop.remove_signal_handler(one)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._note(self._greeting)

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave."""
        return await super().on_tick(counter) or self._engine.has_failed

    def _on_signal(self, number: int) -> None:
        if self.should_exit:
            sys.stderr.flush()
            os._exit(128 + number)
        self.should_exit, self.exit_code = True, 128 + number
        self._engine.stop()
        if texts := self._engine.running:
            what = "1 text has" if texts == 1 else f"{texts} texts have"
            self._note(f"stopping: {what} {self._grace:.0f} s to end; Ctrl-C again leaves at once")
        asyncio.get_running_loop().call_later(self._grace, self._engine.cut)
