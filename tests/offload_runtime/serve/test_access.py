"""Who may ask: API keys, names of the host, origins of web pages."""

import http.client
from collections.abc import Iterator

import pytest

from offload_runtime.serve.http.guard import Access
from tests.fakes.served import Answer, Served
from tests.fakes.shared_runtime import SharedRuntime

KEY = "sk-secret"
PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    with Served(SharedRuntime()) as one:
        yield one


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with Served(SharedRuntime(), access=Access(KEY, loopback=False), model="tiny") as one:
        yield one


def with_host(served: Served, *hosts: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:8000"]
)
def test_names_of_this_machine_are_answered(local: Served, host: str) -> None:
    assert with_host(local, host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "::1"),
        *("0.0.0.0", "localhost:8000.evil.example@x", "10.0.0.1", "[fe80::1]:8000", "127.0.0.1@evil.example"),
    ],
)
def test_other_names_are_refused(local: Served, host: str) -> None:
    answer = with_host(local, host)
    assert (answer.status, answer.error["code"]) == (403, "unknown_host")


def test_a_server_with_a_key_answers_to_any_name(keyed: Served) -> None:
    assert with_host(keyed, "my.example").status == 401


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nothing", "/v1/sequoia/plan", "/v1/chat/completions"])
def test_a_key_is_needed(keyed: Served, path: str) -> None:
    for headers, said in (
        ({}, "an API key is needed"),
        ({"Authorization": "Bearer"}, "an API key is needed"),
        ({"Authorization": f"Basic {KEY}"}, "an API key is needed"),
        ({"Authorization": f"Bearer {KEY}x"}, "wrong"),
        ({"Authorization": "Bearer é"}, "wrong"),
        ({"x-api-key": "sk"}, "wrong"),
    ):
        answer = keyed.get(path, **{name.replace("-", "_"): text for name, text in headers.items()})
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert said in answer.error["message"] and KEY not in answer.body.decode()
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens(keyed: Served) -> None:
    assert keyed.get("/v1/models", Authorization=f"Bearer {KEY}").status == 200
    assert keyed.get("/v1/models", Authorization=f"bearer  {KEY} ").status == 200
    assert keyed.get("/metrics", x_api_key=KEY).status == 200
    assert keyed.get("/health").status == keyed.get("/").status == keyed.get("/page/main.js").status == 200
    assert keyed.get("/v1/models/other", Authorization=f"Bearer {KEY}").error["code"] == "model_not_found"


def test_web_pages_of_other_origins_may_not_ask(local: Served) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    for origin in (PAGE, "null", "http://localhost:1", "http://127.0.0.1"):
        answer = local.post("/v1/chat/completions", body, Origin=origin)
        assert (answer.status, answer.error["code"]) == (403, "unknown_origin"), origin
    own = f"http://127.0.0.1:{local.port}"
    answer = local.post("/v1/chat/completions", body, Origin=own)
    assert answer.status == 200 and "access-control-allow-origin" not in answer.headers
    assert local.request("OPTIONS", "/v1/models", Origin=PAGE, Access_Control_Request_Method="POST").status != 200


def test_named_origins_may_ask() -> None:
    with Served(SharedRuntime(), access=Access(None, True, (PAGE,))) as served:
        answer = served.get("/v1/models", Origin=PAGE)
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == PAGE
        other = served.get("/v1/models", Origin="https://evil.example")
        assert other.status == 403 and "access-control-allow-origin" not in other.headers
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        ahead = served.request("OPTIONS", "/v1/chat/completions", None, Origin=PAGE, **asked)
        assert ahead.status == 200 and ahead.headers["access-control-allow-origin"] == PAGE
        wrong = served.post("/v1/chat/completions", {}, Origin=PAGE)
        assert wrong.status == 400 and wrong.headers["access-control-allow-origin"] == PAGE
    with Served(SharedRuntime(), access=Access(KEY, True, ("*",))) as served:
        answer = served.get("/v1/models", Origin=PAGE, Authorization=f"Bearer {KEY}")
        assert answer.headers["access-control-allow-origin"] == "*"
