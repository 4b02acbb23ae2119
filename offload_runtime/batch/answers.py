"""Runs the lines of a job on one runtime: as many texts in a pass as it has places for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from offload_runtime.batch.input_file import InputLine
from offload_runtime.batch.lines.batch_line import BatchLine, output_line
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import OffloadError, UsageError

if TYPE_CHECKING:
    from offload_runtime.generation.generation_request import GenerationRequest
    from offload_runtime.generation.reply import Reply
    from offload_runtime.generation.running_text import RunningText
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.generation.shared_passes import SharedPasses

MOST_FAILURES = 3  # one after the other, none of them a line's own fault: then the run is at fault, not the texts


@dataclass(frozen=True)
class Answer:
    """The line of output for a line of input. index: that line's number. tokens: written for it."""

    index: int
    line: bytes
    failed: bool = False
    tokens: int = 0


@dataclass
class _Running:
    """A line with texts that are not finished. waiting: numbers of requests without a place yet."""

    line: BatchLine
    requests: "list[GenerationRequest]"
    waiting: deque[int]
    texts: "dict[RunningText, int]" = field(default_factory=dict)
    replies: "dict[int, Reply]" = field(default_factory=dict)


def error_answers(forms: Forms, lines: Iterable[InputLine]) -> Iterator[Answer]:
    """The answers to lines that cannot be run."""
    for line in map(forms.read, lines):
        try:
            line.requests()
        except UsageError as error:
            yield _error_answer(line, error)


def _error_answer(line: BatchLine, error: OffloadError) -> Answer:
    return Answer(line.index, output_line(line.failure(error)), failed=True)


class LineRunner:
    """Turns lines into answers as their texts end, in that order.

    should_stop: polled between layers; the answers then end, and unfinished texts are dropped. on_pass: called after
    every pass with the number of tokens that it wrote.
    """

    def __init__(
        self,
        runtime: "OffloadRuntime",
        forms: Forms,
        should_stop: Callable[[], bool],
        on_pass: Callable[[int], None] = lambda tokens: None,
    ):
        self._runtime, self._should_stop, self._on_pass = runtime, should_stop, on_pass
        self._forms = forms.with_tokenizer(lambda: runtime.tokenizer)
        self._running: list[_Running] = []
        self._failed: list[Answer] = []  # by faults that may be the run's; kept until a reply shows that it works

    def answers(self, lines: Iterable[InputLine]) -> Iterator[Answer]:
        """Lines are taken as places free up. Raises the error of a text if others cannot be written either."""
        waiting = iter(lines)
        with self._runtime.shared_passes() as passes:
            while not self._should_stop():
                yield from self._fill(passes, waiting)
                if not self._running:
                    yield from self._failed
                    return
                steps = passes.step()
                self._on_pass(sum(len(step.token_ids) for _, step in steps))
                yield from self._finished(passes)

    def _fill(self, passes: "SharedPasses", lines: Iterator[InputLine]) -> Iterator[Answer]:
        """Give every free place to a text."""
        while passes.free > 0:
            running = next((one for one in self._running if one.waiting), None)
            if running is None:
                line = next(lines, None)
                if line is None:
                    return
                yield from self._begin(self._forms.read(line))
                continue
            try:
                number = running.waiting.popleft()
                running.texts[passes.add(running.requests[number])] = number
            except UsageError as error:
                yield self._drop(passes, running, error)

    def _begin(self, line: BatchLine) -> Iterator[Answer]:
        try:
            requests = [
                replace(request, arguments={**request.arguments, "should_stop": self._should_stop})
                for request in line.requests()
            ]
        except UsageError as error:
            yield _error_answer(line, error)
            return
        self._running.append(_Running(line, requests, deque(range(len(requests)))))

    def _finished(self, passes: "SharedPasses") -> Iterator[Answer]:
        for running in [*self._running]:
            error = next((text.error for text in running.texts if text.error is not None), None)
            if error is not None:
                answer = self._drop(passes, running, error)
                yield from [answer] if isinstance(error, UsageError) else self._hold(answer, error)
                continue
            for text in [text for text in running.texts if text.reply.finish_reason in ("stop", "length")]:
                running.replies[running.texts.pop(text)] = text.reply
            if not running.texts and not running.waiting:
                self._running.remove(running)
                yield from [*self._failed, _answer(running)]
                self._failed = []

    def _hold(self, answer: Answer, error: OffloadError) -> Sequence[Answer]:
        """Keep back an answer that may be due to the run; raise its error if it would be all lines' answer."""
        self._failed.append(answer)
        if len(self._failed) >= MOST_FAILURES:
            raise error
        return ()

    def _drop(self, passes: "SharedPasses", running: _Running, error: OffloadError) -> Answer:
        for text in running.texts:
            passes.remove(text)
        self._running.remove(running)
        return _error_answer(running.line, error)


def _answer(running: _Running) -> Answer:
    replies = [running.replies[number] for number in sorted(running.replies)]
    tokens = sum(len(reply.token_ids) for reply in replies)
    return Answer(running.line.index, output_line(running.line.reply(replies)), tokens=tokens)
