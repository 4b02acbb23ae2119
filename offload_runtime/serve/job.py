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

# Seconds. To wake the event loop, write to a socket and wake its reader takes a third of a millisecond, half of it from
# the passes where all cores compute: 5 % of a pass of 7 ms. An eye does not see the difference.
PACE = 0.025


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


class Job:
    """Places for the texts of a request, and their steps as they come. A context manager that gives the places back.

    Made within the event loop. step_by_step: whether steps are wanted before the last. Raises ApiError where the queue
    is full.
    """

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest], step_by_step: bool = True):
        self._engine, self._requests, self._step_by_step = engine, requests, step_by_step
        self._loop = asyncio.get_running_loop()
        # Appended to by the engine's thread, which then looks whether somebody is to be woken; the loop's thread says
        # that it is, then looks whether there is something. So no event waits for a wake-up that does not come.
        self._events: deque[tuple[int, Step | ApiError | None]] = deque()
        self._hears_steps = self._has_end = False
        self._arrived = self._loop.create_future()
        self._next_at = 0.0  # by the loop's clock
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

    async def steps(self, within: float) -> "list[tuple[int, Step]]":
        """The steps that have come since the last call, with their texts' numbers; none if none comes in `within` s.

        Steps that follow each other faster than PACE are given together; the request's first and a text's last never
        wait. Raises ApiError for a text that fails, ClientLeft after `leave`.
        """
        if not self._has_end:
            await self._wait(self._next_at - self._loop.time())
        self._hears_steps = True
        if not self._events:
            await self._wait(within)
        self._hears_steps = self._has_end = False
        found = self._taken()
        if found:
            self._next_at = self._loop.time() + PACE
        return found

    async def leave_with(self, receive: Receive) -> None:
        """Leave as soon as the client has. For a task of its own, once the body is read."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._engine.leave(self._places)
        self._deliver(0, None)

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.leave(self._places)

    def _deliver(self, index: int, event: "Step | ApiError | None") -> None:
        """Called by the engine's thread; and at last by the loop's, without an event."""
        is_end = event is None or isinstance(event, ApiError) or event.finish_reason is not None
        if not is_end and not self._step_by_step:
            return
        self._events.append((index, event))
        if is_end:
            self._has_end = True
        if is_end or self._hears_steps:
            with suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._wake)

    def _taken(self) -> "list[tuple[int, Step]]":
        """The steps up to an error; the error itself if none comes before it."""
        found: list[tuple[int, Step]] = []
        while self._events:
            index, event = self._events[0]
            if event is None or isinstance(event, ApiError):
                self._has_end = True
                if found:
                    break
                raise event or ClientLeft
            self._events.popleft()
            self._open -= event.finish_reason is not None
            found.append((index, event))
        return found

    async def _wait(self, seconds: float) -> None:
        """Until something wakes it. `asyncio.wait_for` would start a task for every step, at three times the cost."""
        if seconds <= 0:
            return
        self._arrived = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake)
        try:
            await self._arrived
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if not self._arrived.done():
            self._arrived.set_result(None)
