"""The endpoints that write: from a request's body to its answer, whole or step by step."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from offload_runtime.serve.api.asked import Asked, Offer, SseEvent
from offload_runtime.serve.engine import Engine
from offload_runtime.serve.errors import ApiError
from offload_runtime.serve.http.answers import KEEP_ALIVE, EventStream, JsonResponse, frame
from offload_runtime.serve.http.body import parse_object, read_body
from offload_runtime.serve.job import ClientLeft, Job

QUIET = 5.0  # seconds without an event after which a comment is sent
OUTCOME = "outcome"  # in a request's scope: what became of it where its status does not tell


class Generation:
    """An ASGI application that answers bodies which `read` understands."""

    def __init__(self, engine: Engine, offer: Offer, read: Callable[[Mapping[str, Any], Offer], Asked]):
        self._engine, self._offer, self._read = engine, offer, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(Request(scope, receive))
            asked = self._read(parse_object(body), self._offer)
            for text in asked.texts:
                self._offer.check_length(text)
            with Job(self._engine, asked.texts, asked.stream) as job:
                leaving = asyncio.create_task(job.leave_with(receive))
                try:
                    await job.begin()
                    if asked.stream:
                        await self._stream(asked, job, scope, send)
                    else:
                        response = await self._whole(asked, job)
                        await response(scope, receive, send)
                finally:
                    leaving.cancel()
        except (ClientDisconnect, ClientLeft):
            scope[OUTCOME] = "left"

    async def _whole(self, asked: Asked, job: Job) -> JsonResponse:
        while not job.is_done:
            await job.steps(QUIET)
        return JsonResponse(asked.form.whole(job.replies))

    async def _stream(self, asked: Asked, job: Job, scope: Scope, send: Send) -> None:
        stream = EventStream(send)
        await stream.begin()
        await stream.send(_frames(asked.form.opening(job.replies)) or KEEP_ALIVE)
        try:
            while not job.is_done:
                steps = await job.steps(QUIET)
                events = (event for step in steps for event in asked.form.step(*step))
                await stream.send(_frames(events) if steps else KEEP_ALIVE)
        except ApiError as error:
            scope[OUTCOME] = "failed"
            await stream.send(_frames(asked.form.failed(error)))
        else:
            await stream.send(_frames(asked.form.closing(job.replies)))
        await stream.end()


def _frames(events: Iterable[SseEvent]) -> bytes:
    return b"".join(map(frame, events))
