"""The texts of one request, on the event loop's side."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.types import Receive

from offload_runtime.errors import OffloadError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.engine import Engine
from offload_runtime.serve.errors import ApiError, of_runtime

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.reply import Reply


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


class Job:
    """Places for the texts of a request, and their steps as they come. A context manager that gives the places back.

    Made within the event loop. Raises ApiError where the queue is full.
    """

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest]):
        self._engine, self._requests = engine, requests
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Step | ApiError | None]] = deque()
        self._arrived = self._loop.create_future()
        self._places = engine.let_in([partial(self._deliver, index) for index in range(len(requests))])
        self._open = len(requests)

    @property
    def is_done(self) -> bool:
        """Whether every text's last step was returned."""
        return not self._open

    @property
    def replies(self) -> "list[Reply]":
        """The replies so far, in the order of the requests; after `begin`."""
        return [place.text.reply for place in self._places if place.text is not None]

    async def begin(self) -> None:
        """Check and encode the prompts, then let the texts wait for their turn. Raises ApiError for bad ones."""
        try:
            for place, request in zip(self._places, self._requests):
                await asyncio.wrap_future(self._engine.begin(place, request))
        except OffloadError as error:
            raise of_runtime(error) from error
        self._engine.enqueue(self._places)

    async def step(self, within: float) -> "tuple[int, Step] | None":
        """The next step of any text, with the text's number; None if there is none within so many seconds.

        Raises ApiError for a text that fails, ClientLeft after `leave`.
        """
        if not self._events:
            await self._wait(within)
        if not self._events:
            return None
        index, event = self._events.popleft()
        if event is None:
            raise ClientLeft
        if isinstance(event, ApiError):
            raise event
        self._open -= event.finish_reason is not None
        return index, event

    async def leave_with(self, receive: Receive) -> None:
        """Leave as soon as the client has. For a task of its own, once the body is read."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._engine.leave(self._places)
        self._take(0, None)

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.leave(self._places)

    def _deliver(self, index: int, event: "Step | ApiError") -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._take, index, event)

    def _take(self, index: int, event: "Step | ApiError | None") -> None:
        self._events.append((index, event))
        _wake(self._arrived)

    async def _wait(self, seconds: float) -> None:
        """Until something arrives. `asyncio.wait_for` would start a task for every step, at three times the cost."""
        self._arrived = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, self._arrived)
        try:
            await self._arrived
        finally:
            timer.cancel()


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
