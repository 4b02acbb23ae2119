"""Clients that send their request byte by byte, or not at all, keep no connection; slow answers and idle ones do."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from offload_runtime.serve.http import body, protocol
from tests.fakes.served import PATIENCE, Served
from tests.fakes.shared_runtime import SharedRuntime, answer_to
from tests.offload_runtime.serve.test_life_of_a_request import Asking, holding

LIMIT = 0.4  # seconds, in place of 20 and 30
DRIP = LIMIT / 5
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
COMPLETE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", LIMIT)
    monkeypatch.setattr(body, "PATIENCE", LIMIT)
    with Served(SharedRuntime(parallel=1)) as one:
        yield one


def connected(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection; what it has sent before is read over."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.settimeout(PATIENCE)


def drip(connection: socket.socket, text: bytes = b"x") -> float:
    """Send byte after byte until the server answers or closes; how long that took."""
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - began < PATIENCE:
            connection.sendall(text)
            connection.settimeout(DRIP)
            with suppress(socket.timeout):
                connection.recv(1, socket.MSG_PEEK)
                break
    connection.settimeout(PATIENCE)
    return time.monotonic() - began


def response(connection: socket.socket) -> tuple[int, str]:
    """The status of an answer, and the code of its error."""
    found = http.client.HTTPResponse(connection)
    found.begin()
    content = json.loads(found.read())
    return found.status, content.get("error", {}).get("code", "")


def test_headers_that_drip_are_given_up(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert drip(connection) >= LIMIT - DRIP
        assert response(connection) == (408, "timeout") and connection.recv(1) == b""


def test_a_connection_that_says_nothing_is_closed(served: Served) -> None:
    with connected(served) as connection:
        assert connection.recv(1) == b""


def test_a_body_that_drips_is_given_up(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(HEAD)
        drip(connection)
        assert response(connection) == (408, "timeout")


def test_the_rest_of_a_body_that_was_answered_is_not_waited_for(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(HEAD.replace(b"/v1/chat/completions", b"/nothing"))
        assert response(connection)[0] == 404
        began = time.monotonic()
        while not is_closed(connection):
            with suppress(OSError):
                connection.sendall(b"x")
            assert time.monotonic() - began < PATIENCE
            time.sleep(DRIP)


def test_a_second_request_has_the_same_time(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(COMPLETE)
        assert response(connection)[0] == 200
        time.sleep(2 * LIMIT)  # between requests, the limit for idle connections holds
        connection.sendall(COMPLETE)
        assert response(connection)[0] == 200
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        drip(connection)
        assert response(connection) == (408, "timeout")


def test_an_answer_takes_the_time_that_it_takes(served: Served) -> None:
    with holding(served.runtime):
        whole = Asking(served, "once upon a time")
        time.sleep(3 * LIMIT)
    assert whole.text == answer_to("once upon a time")


def test_a_large_body_has_longer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it comes as fast as the slowest line."""
    monkeypatch.setattr(body, "SLOWEST", 1000.0)
    content = json.dumps({"messages": [{"role": "user", "content": "hello"}], "user": "x" * 2000}).encode()
    with connected(served) as connection:
        connection.sendall(HEAD.replace(b"100000", str(len(content)).encode()))
        pieces = [content[begin : begin + 500] for begin in range(0, len(content), 500)]
        for piece in pieces:
            time.sleep(LIMIT / 2)
            connection.sendall(piece)
        assert len(pieces) > 4
        assert response(connection)[0] == 200
