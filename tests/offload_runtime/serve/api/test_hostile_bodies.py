"""Bodies made to hurt: every one is answered, in OpenAI's form, and the server goes on."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from offload_runtime.serve.api.asked import Offer
from offload_runtime.serve.api.chat import read_chat
from offload_runtime.serve.api.completion import read_completion
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.errors import ApiError
from offload_runtime.serve.http import body as bodies
from offload_runtime.serve.http.body import MOST_BYTES, MOST_CONTAINERS, MOST_DEPTH, parse_object
from tests.fakes.served import Served
from tests.fakes.shared_runtime import SharedRuntime
from tests.samples.tokenizer_samples import byte_level

CHAT = "/v1/chat/completions"
OFFER = Offer("tiny", True, 8, TokenTexts(byte_level))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(SharedRuntime()) as one:
        yield one


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse_object(body)
    assert raised.value.status == 400 and len(raised.value.message) < 300
    return raised.value


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "Expecting value"),
        (b"[]", "it is not an object"),
        (b"7", "it is not an object"),
        (b'{"a": 1', "delimiter"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": ' + b"9" * 5_000_000 + b"}", "5000000 digits"),
        (b'{"a": 0.' + b"1" * 5_000_000 + b"}", "out of range"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', None),
        (b'{"a": "x\ny"}', "control character"),
        (b"\x1f\x8b\x08\x00", "UTF-8"),
    ],
)
def test_what_is_no_json_is_named(body: bytes, said: str | None) -> None:
    if said is None:
        body = b'{"a\\ud83d": 1}'
        said = "half a character"
    assert said in refusal(body).message


def test_whole_characters_in_escapes_are_taken() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00\\u00e9"}') == {"a": "😀é"}
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_nesting_is_bounded_before_parsing() -> None:
    deepest = b'{"a":' * (MOST_DEPTH - 1) + b"{}" + b"}" * (MOST_DEPTH - 1)
    assert parse_object(deepest)
    assert refusal(b'{"a":' * MOST_DEPTH + b"{}" + b"}" * MOST_DEPTH).code == "too_deep"
    assert refusal(b"[" * 5_000_000).code == "too_many"
    assert refusal(b'{"a": "\\"' + b'[" , ' + b"[" * (MOST_DEPTH + 1)).code == "too_deep"


def test_brackets_and_quotes_in_texts_do_not_count() -> None:
    for text in ("[" * 100_000, '"' * 100_000, "\\" * 100_000, '\\"[{' * 50_000, "," * 3_000_000):
        assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


def test_counts_are_bounded_before_parsing() -> None:
    assert refusal(b'{"a":[' + b"{}," * (2 * MOST_CONTAINERS) + b"{}]}").code == "too_many"
    assert refusal(b'{"a":[' + b"0," * 4_000_000 + b"0]}").code == "too_many"


def test_quotes_that_never_end_take_no_time() -> None:
    for body in (b'"\\' * 4_000_000, b'"' * 8_000_001, b"\\" * 8_000_000, b'{"' + b'\\"' * 4_000_000):
        refusal(body)


@settings(max_examples=300)
@given(some.recursive(some.none() | some.booleans() | some.floats() | some.integers() | some.text(), some.lists))
def test_the_bounds_hold_for_any_json(value: Any) -> None:
    body = json.dumps({"a": value}).encode()
    try:
        assert parse_object(body) == {"a": value}
    except ApiError as error:
        assert error.status == 400


ANY = some.recursive(
    some.none() | some.booleans() | some.floats(allow_nan=False) | some.integers() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = some.fixed_dictionaries(
    {},
    optional={
        "role": some.sampled_from(["system", "user", "assistant", "tool"]) | ANY,
        "content": some.text(max_size=5) | some.lists(some.fixed_dictionaries({"type": some.just("text")}) | ANY) | ANY,
        "name": ANY,
        "tool_calls": ANY,
    },
)
FIELDS = (
    *("model", "messages", "prompt", "stream", "stream_options", "n", "seed", "stop", "temperature", "top_p", "top_k"),
    *("min_p", "max_tokens", "max_completion_tokens", "logit_bias", "logprobs", "top_logprobs", "response_format"),
    *("chat_template_kwargs", "metadata", "user", "store", "frequency_penalty", "tools", "tool_choice", "best_of"),
)
BODY = some.dictionaries(some.sampled_from(FIELDS), ANY, max_size=6)


@settings(max_examples=400)
@given(BODY, some.lists(MESSAGE, max_size=3) | ANY, ANY)
def test_any_value_of_any_field_is_read_or_refused(body: dict[str, Any], messages: Any, prompt: Any) -> None:
    for read, more in ((read_chat, {"messages": messages}), (read_completion, {"prompt": prompt})):
        try:
            asked = read({**body, **more}, OFFER)
        except ApiError as error:
            assert error.status in (400, 404) and len(error.message) < 1000
        else:
            assert 1 <= len(asked.texts) <= 8


def raw(served: Served, request: bytes) -> bytes:
    """What comes back for some bytes, until the server closes or the answer is whole."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return f"{response.status} ".encode() + response.read()


def test_long_bodies_are_refused_before_they_are_read(served: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    for length in (str(MOST_BYTES + 1), "9" * 15):
        answer = raw(served, f"{head}{length}\r\n\r\n".encode())
        assert answer.startswith(b"413 ") and b"longer than 16 MiB" in answer


def test_long_bodies_in_chunks_are_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except OSError:
            return  # the server has answered and closed
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 413


def test_a_body_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE", 0.05)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{"
    assert raw(served, head.encode()).startswith(b"408 ")


def test_a_client_that_leaves_within_its_body_is_forgotten(served: Served) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert served.chat("x").status == 200


@pytest.mark.parametrize(
    "request_line",
    [b"\x00\x01\x02\r\n\r\n", b"GET /\r\n\r\n", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"],
)
def test_what_is_no_http_is_refused(served: Served, request_line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(request_line)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert served.get("/health").status == 200


def test_texts_with_control_characters_come_through(served: Served) -> None:
    for text in ("\x00", "\u202e\u2066", "a\r\nb", "😀" * 50, "\x7f\x1b[31m"):
        assert served.chat(text).status == 200
        with served.stream_chat(text) as stream:
            assert list(stream.data())
