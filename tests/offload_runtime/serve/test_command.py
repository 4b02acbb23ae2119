"""The command line: options, what is refused before anything loads, and how a server ends."""

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from offload_runtime.options.run_options import DEMO_TARGET
from offload_runtime.serve import main
from offload_runtime.serve.command import DEMO_NAME, shown_name
from offload_runtime.serve.options import KEY_VARIABLE, parse_serve_arguments
from offload_runtime.serve.server import bind, url_of
from tests.fakes.serve_process import ServeProcess
from tests.fakes.served import Stream, wait_until
from tests.fakes.shared_runtime import answer_to

PROMPT = "once upon a time there was"
BODY = {"messages": [{"role": "user", "content": PROMPT}], "stream": True}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_serve_arguments(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_defaults() -> None:
    parsed = parse_serve_arguments([])
    assert (parsed.host, parsed.port, parsed.parallel, parsed.queue) == ("127.0.0.1", 8000, "auto", 64)
    assert (parsed.api_key, parsed.no_api_key, parsed.model_name, parsed.cors) == (None, False, None, [])


def test_other_machines_need_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "my.example"):
        assert "--api-key KEY, or say --no-api-key" in refused(capsys, "--host", host)
        assert parse_serve_arguments(["--host", host, "--no-api-key"]).api_key is None
        assert parse_serve_arguments(["--host", host, "--api-key", "sk-1"]).api_key == "sk-1"
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert parse_serve_arguments(["--host", host]).api_key is None
    monkeypatch.setenv(KEY_VARIABLE, "sk-2")
    assert parse_serve_arguments(["--host", "0.0.0.0"]).api_key == "sk-2"
    assert parse_serve_arguments(["--no-api-key"]).api_key is None
    monkeypatch.setenv(KEY_VARIABLE, "sk 2")
    assert f"{KEY_VARIABLE}: a key is of" in refused(capsys)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--api-key", "é"), "a key is of letters"),
        (("--api-key", ""), "a key is of letters"),
        (("--api-key", "a", "--no-api-key"), "not allowed with"),
        (("--port", "70000"), "out of range"),
        (("--queue", "-1"), "out of range"),
        (("--cors", "chat.example"), "is no origin"),
        (("--cors", "https://chat.example/"), "is no origin"),
        (("--grace", "-1"), "out of range"),
        (("--parallel", "0"), "out of range"),
        (("--gpu", "l40"), "add --plan"),
        (("--prompt", "x"), "unrecognized"),
    ],
)
def test_wrong_options_are_named(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, *arguments)


def test_an_address_that_is_taken_is_named_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"error: port {port} of 127.0.0.1 cannot be used (Address already in use)." in capsys.readouterr().err
    assert main(["--host", "no.such.name.invalid", "--no-api-key"]) == 2
    assert "error: --host no.such.name.invalid: no such address" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error == "error: the server needs uvicorn. Try: pip install 'sequoia-offload[serve]'\n"


def test_the_plan_is_printed_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--device", "cpu", "--parallel", "3"]) == 0
    assert "up to 3 share a pass" in capsys.readouterr().out


def test_the_name_of_a_model_is_no_path(tmp_path: Path) -> None:
    assert shown_name(SimpleNamespace(model=DEMO_TARGET)) == DEMO_NAME
    assert shown_name(SimpleNamespace(model=tmp_path / "My-Model")) == "My-Model"
    assert shown_name(SimpleNamespace(model=Path("org/name@main"))) == "org/name@main"


def test_addresses() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound, "127.0.0.1") == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert url_of(bound, "::1").startswith("http://[::1]:")


@contextmanager
def process(tmp_path: Path, seconds: float, *options: str) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path / "errors", seconds, 1, *options) as one:
        wait_until(one.is_ready)
        yield one


def writing(server: ServeProcess) -> None:
    """Wait until a text is being written."""
    url = f"http://127.0.0.1:{server.port}/health"
    wait_until(lambda: json.load(urlopen(url))["running"] == 1)


def read(stream: Stream) -> tuple[str, list[dict]]:
    """The text of a stream, and the errors in it."""
    events = list(stream.data())
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events if "choices" in event]
    return "".join(pieces), [event["error"] for event in events if "error" in event]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_replies_end_before_the_server_does(tmp_path: Path, number: int) -> None:
    with process(tmp_path, 0.1, "--grace", "60") as server:
        with Stream(server.port, "/v1/chat/completions", BODY) as stream:
            writing(server)
            server.send(number)
            wait_until(lambda: "stopping: 1 text has 60 s to end" in server.printed())
            text, errors = read(stream)
            assert text == answer_to(PROMPT) and not errors
        assert server.exit_code() == 128 + number
        assert re.search(r"^stop: prompt \d+ of \d+ tokens, .* tok/s · \d+ tokens", server.printed(), re.MULTILINE)
        assert "Traceback" not in server.printed()


def test_replies_that_take_longer_are_cut(tmp_path: Path) -> None:
    with process(tmp_path, 1.0, "--grace", "0") as server:
        with Stream(server.port, "/v1/chat/completions", BODY) as stream:
            writing(server)
            server.send(signal.SIGTERM)
            text, errors = read(stream)
            assert text != answer_to(PROMPT) and errors[0]["code"] == "stopping"
        assert server.exit_code() == 143 and "Traceback" not in server.printed()


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    with process(tmp_path, 600.0) as server, Stream(server.port, "/v1/chat/completions", BODY) as stream:
        writing(server)
        server.send(signal.SIGINT)
        wait_until(lambda: "Ctrl-C again leaves at once" in server.printed())
        server.send(signal.SIGINT)
        assert server.exit_code() == 130
        with pytest.raises((AssertionError, OSError, IndexError)):
            read(stream)


def test_an_idle_server_ends_at_once_although_clients_stay_connected(tmp_path: Path) -> None:
    with process(tmp_path, 0.0) as server, socket.create_connection(("127.0.0.1", server.port)):
        server.send(signal.SIGTERM)
        assert server.exit_code() == 143
        assert "stopping" not in server.printed()
