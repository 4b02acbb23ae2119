"""Several texts that are written side by side, pass by pass; they join and leave between passes."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from offload_runtime.errors import UsageError
from offload_runtime.generation.decode import Step
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.running_text import RunningText

if TYPE_CHECKING:
    from offload_runtime.generation.runtime import OffloadRuntime

CANNOT_SHARE = (
    "they take turns, since the rotations of this model depend on the length of the text in the pass. "
    "A shorter --context-length, below the length from which they change, lets texts share passes"
)


class SharedPasses:
    """The texts that a runtime writes together, at most `runtime.parallel`. For one thread; a context manager."""

    def __init__(self, runtime: "OffloadRuntime"):
        self._runtime = runtime
        self._texts: list[RunningText] = []

    @property
    def texts(self) -> list[RunningText]:
        """Those that are being written."""
        return [*self._texts]

    @property
    def free(self) -> int:
        """How many more texts there is a place for."""
        return self._runtime.parallel - len(self._texts)

    def add(self, request: GenerationRequest) -> RunningText:
        """Let a text join from the next pass on. Raises UsageError or PromptError for a request that cannot run."""
        return self.join(self._runtime.begin(request))

    def join(self, text: RunningText) -> RunningText:
        """`add` for a text that `OffloadRuntime.begin` has checked and encoded already, in whichever thread."""
        if self.free <= 0:
            raise UsageError(f"all {self._runtime.parallel} places are taken: wait until a text is done")
        self._texts.append(text)
        return text

    def step(self) -> list[tuple[RunningText, Step]]:
        """One pass for all texts: a step of each that did not fail (then its `error` says why)."""
        steps = self._runtime.advance(self._texts)
        for text in [text for text in self._texts if text.done]:
            self.remove(text)
        return steps

    def run(self, requests: Iterable[GenerationRequest]) -> Iterator[tuple[RunningText, Step]]:
        """The steps of all requests; each is taken once there is a place. Raises the error of the first that fails."""
        waiting = iter(requests)
        while True:
            while self.free > 0 and (request := next(waiting, None)) is not None:
                self.add(request)
            running = self.texts
            if not running:
                return
            yield from self.step()
            for text in running:
                if text.error is not None:
                    raise text.error

    def remove(self, text: RunningText) -> None:
        """Drop a text between two passes; its reply ends "interrupted" unless it is done."""
        if text in self._texts:
            self._texts.remove(text)
            self._runtime.leave(text)

    def close(self) -> None:
        """Drop all texts."""
        for text in self.texts:
            self.remove(text)

    def __enter__(self) -> "SharedPasses":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
