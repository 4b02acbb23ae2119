"""Who may ask: API keys, names of the host against DNS rebinding, and origins of web pages."""

import hmac
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from offload_runtime.serve.errors import ApiError
from offload_runtime.serve.http.loopback import is_loopback

_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]@/]+))(?::\d{1,5})?")


@dataclass(frozen=True)
class Access:
    """api_key: None where anybody may ask. loopback: whether only this machine reaches the server.

    origins: of web pages that may ask besides the server's own; "*" for all. open_paths: answered without a key.
    """

    api_key: str | None
    loopback: bool
    origins: tuple[str, ...] = ()
    open_paths: Collection[str] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that may not be made."""
        if self.api_key is None:
            self._check_host(headers.get("host", ""))
            self._check_origin(headers)
        elif path not in self.open_paths:
            self._check_key(self.api_key, headers)

    def _check_host(self, host: str) -> None:
        """A web page whose name was pointed at this machine arrives under its own name."""
        if self.loopback and not is_loopback(_name(host)):
            raise ApiError(
                403, "this server answers to localhost, 127.0.0.1 and [::1] only: use one of them", code="unknown_host"
            )

    def _check_origin(self, headers: Headers) -> None:
        """Any web page can send a request here, although it may not read the answer."""
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(
                403,
                "web pages of other origins may not ask: start the server with --cors ORIGIN",
                code="unknown_origin",
            )

    def _check_key(self, key: str, headers: Headers) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            message = "an API key is needed: Authorization: Bearer KEY"
        elif hmac.compare_digest(given.encode(), key.encode()):
            return
        else:
            message = "the API key is wrong"
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class Guard:
    """An ASGI application in front of another: lets requests through, or answers them by `refuse`."""

    def __init__(self, app: ASGIApp, access: Access, refuse: Callable[[str, ApiError], ASGIApp]):
        self._app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        try:
            self._access.check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            app = self._refuse(scope["path"], error)
        await app(scope, receive, send)


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is none."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]) if found else ""
