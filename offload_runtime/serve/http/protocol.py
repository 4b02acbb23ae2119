"""HTTP/1.1 whose requests must come in time: a head within seconds, and no body for ever after its answer."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from offload_runtime.serve.errors import ApiError, openai_body
from offload_runtime.serve.http.answers import to_json

HEAD_SECONDS = 20.0  # from the first byte, or from the connection, to the last byte of a request's headers


class TimedProtocol(H11Protocol):
    """uvicorn's protocol on h11, with a limit on what it waits for without one. It limits idle connections itself."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that stays silent is one that waits for a request's head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Whatever comes does not begin the time anew, unless it is the rest of a head."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._forget_limit()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Limit the time while a head, or the rest of a body that is answered already, is to come."""
        waits_for_head = self.conn.their_state is h11.IDLE
        answered = self.cycle is not None and self.cycle.response_complete
        if not waits_for_head and not (answered and self.conn.their_state is h11.SEND_BODY):
            self._forget_limit()
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _give_up(self) -> None:
        """Close; a client that has sent a part of a head is told why."""
        self._limit = None
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            error = ApiError(408, f"the request's headers did not come within {HEAD_SECONDS:.0f} s", code="timeout")
            self._refuse(error)
        self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        content = to_json(openai_body(error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=error.status, headers=headers, reason=b"Request Timeout"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event))
