"""The engine: one thread that owns the shared passes and writes the texts that were let in, in the order they came."""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from offload_runtime.errors import OffloadError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.errors import INTERNAL, ApiError, of_runtime, queue_full, stopping

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.running_text import RunningText
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.generation.shared_passes import SharedPasses

THREAD = "engine"
MOST_COUNTS = 64  # prompts whose tokens are to be counted
FIRST_GUESS = 5.0  # seconds that a text takes, before any was measured
LONGEST_RETRY = 60  # seconds; clients take longer ones for mistakes


class Watch(Protocol):
    """Told of every pass, on the engine's thread."""

    def passed(self, steps: "Sequence[tuple[RunningText, Step]]", seconds: float) -> None:
        """A pass took so many seconds of wall time and made these steps."""


@dataclass(eq=False)
class TextSlot:
    """The place of one text, from when it is let in until its last step or until nobody waits for it.

    deliver: takes every step, and an error that ends the text; called by the engine's thread, or by `Engine.stop` and
    `Engine.cut`. left: nobody waits for the text any more.
    """

    deliver: "Callable[[Step | ApiError], None]"
    text: "RunningText | None" = None
    left: bool = False
    is_counted: bool = True
    begun_at: float = 0.0

    def should_stop(self) -> bool:
        """For the runtime, which asks between two layers."""
        return self.left


class Engine:
    """Writes texts, at most `runtime.parallel` at once and `queue` more waiting. Any thread may call its methods.

    has_failed: whether an error that is none of the texts' has ended it.
    """

    def __init__(
        self,
        runtime: "OffloadRuntime",
        queue: int,
        watches: Iterable[Watch] = (),
    ):
        self._runtime, self._watches = runtime, [*watches]
        self.has_failed = False
        self.most = runtime.parallel + queue
        self._changed = threading.Condition()
        self._waiting: deque[TextSlot] = deque()
        self._running: dict[RunningText, TextSlot] = {}
        self._counted = self._counting = 0
        self._stopping = False
        self._seconds_per_text = FIRST_GUESS
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    @property
    def waiting(self) -> int:
        """Texts that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    @property
    def places(self) -> int:
        """Places that are held: of texts that run, wait, or are about to."""
        return self._counted

    @property
    def is_serving(self) -> bool:
        """Whether texts are let in."""
        return self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def let_in(self, deliveries: "Sequence[Callable[[Step | ApiError], None]]") -> list[TextSlot]:
        """Places for the texts of one request, all or none. Raises ApiError where the queue is full."""
        with self._changed:
            if self._stopping:
                raise stopping()
            if self._counted + len(deliveries) > self.most:
                raise queue_full(self._retry_after())
            self._counted += len(deliveries)
        return [TextSlot(deliver) for deliver in deliveries]

    def begin(self, place: TextSlot, request: GenerationRequest) -> "Future[None]":
        """Check and encode a text's prompt, in the thread for that: a bad one is answered before it waits for a pass.

        The result raises OffloadError if the request cannot run.
        """
        asked = GenerationRequest(request.prompt, {**request.arguments, "should_stop": place.should_stop})

        def begin() -> None:
            if not place.left:
                place.text = self._runtime.begin(asked)

        return self._prompts.submit(begin)

    def count(self, request: GenerationRequest) -> "Future[int]":
        """How many tokens a prompt has. The result raises OffloadError if it cannot be encoded.

        Raises ApiError if too many wait for theirs.
        """
        with self._changed:
            if self._counting >= MOST_COUNTS:
                raise queue_full(1)
            self._counting += 1

        def count() -> int:
            try:
                return len(self._runtime.encode(request.prompt, **request.arguments))
            finally:
                with self._changed:
                    self._counting -= 1

        return self._prompts.submit(count)

    def enqueue(self, places: Sequence[TextSlot]) -> None:
        """Let texts that have begun wait for their turn. Raises ApiError if the server stops."""
        with self._changed:
            if self._stopping:
                raise stopping()
            self._waiting.extend(place for place in places if not place.left)
            self._changed.notify_all()

    def leave(self, places: Iterable[TextSlot]) -> None:
        """Give up places; they count as free at once, and passes stop for their texts within one layer's time."""
        with self._changed:
            for place in places:
                place.left = True
                self._uncount(place)
                if place in self._waiting:
                    self._waiting.remove(place)

    def stop(self) -> None:
        """Let nothing in any more, and refuse what waits. Texts that are being written go on."""
        with self._changed:
            self._stopping = True
            refused = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        self._refuse(refused, stopping())

    def cut(self) -> None:
        """End the texts that are being written, too."""
        self.stop()
        with self._changed:
            places = [*self._running.values()]
        self._refuse(places, stopping())

    def join(self) -> None:
        """Wait for both threads to end, after `stop`."""
        self._prompts.shutdown(cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join()

    def _refuse(self, places: Sequence[TextSlot], error: ApiError) -> None:
        self.leave(places)
        for place in places:
            place.deliver(error)

    def _uncount(self, place: TextSlot) -> None:
        self._counted -= place.is_counted
        place.is_counted = False

    def _retry_after(self) -> int:
        seconds = self._seconds_per_text / self._runtime.parallel
        return min(max(1, math.ceil(seconds)), LONGEST_RETRY)

    def _run(self) -> None:
        try:
            with self._runtime.shared_passes() as passes:
                while self._take_in(passes):
                    self._pass(passes)
        except Exception:
            traceback.print_exc()
            with self._changed:
                self._stopping = True
                places = [*self._waiting, *self._running.values()]
                self._waiting.clear()
                self._running.clear()
            self._refuse(places, ApiError(500, INTERNAL, code="engine_failed"))
            self.has_failed = True

    def _take_in(self, passes: "SharedPasses") -> bool:
        """Drop texts that nobody waits for, and let others join; waits while there are none. False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._stopping)
            gone = [text for text, place in self._running.items() if place.left]
            for text in gone:
                passes.remove(text)
                del self._running[text]
            while self._waiting and passes.free > 0:
                place = self._waiting.popleft()
                assert place.text is not None
                self._running[passes.join(place.text)] = place
                place.begun_at = time.perf_counter()
            return bool(self._running) or not self._stopping

    def _pass(self, passes: "SharedPasses") -> None:
        if not self._running:
            return
        started = time.perf_counter()
        try:
            steps = passes.step()
        except OffloadError as error:
            self._fail(passes, error)
            return
        seconds = time.perf_counter() - started
        for watch in self._watches:
            watch.passed(steps, seconds)
        for text, step in steps:
            place = self._running[text]
            if text.done:
                self._end(text)
            if not place.left:
                place.deliver(step)
        for text in [text for text in self._running if text.done]:  # without a step: it failed, or its client has left
            place = self._end(text)
            if text.error is not None:
                place.deliver(of_runtime(text.error))

    def _end(self, text: "RunningText") -> TextSlot:
        """Free the place of a text before its last step is delivered: whoever gets it may ask again at once."""
        with self._changed:
            place = self._running.pop(text)
            self._uncount(place)
        seconds = time.perf_counter() - place.begun_at
        self._seconds_per_text += (seconds - self._seconds_per_text) / 4
        return place

    def _fail(self, passes: "SharedPasses", error: OffloadError) -> None:
        """End all texts: a pass that they shared has failed."""
        answer = of_runtime(error)
        for text in [*self._running]:
            passes.remove(text)
            self._end(text).deliver(answer)
