"""A runtime that answers every prompt with its words counted, a word a pass: for tests of what drives many texts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from offload_runtime.errors import OffloadError, PromptError
from offload_runtime.generation.generation_request import GenerationRequest


@dataclass(eq=False)
class Text:
    """A text that is being written; `words` are those still to come."""

    request: GenerationRequest
    words: list[str]
    error: OffloadError | None = None
    reply: Any = field(
        default_factory=lambda: SimpleNamespace(
            **{"text": "", "reasoning": "", "finish_reason": None, "token_ids": [], "seed": 7, "logprobs": []},
            tool_calls=[],
            stats=SimpleNamespace(prompt_tokens=1, prompt_tokens_read=1, tokens=0, passes=0),
        )
    )

    @property
    def done(self) -> bool:
        return self.error is not None or self.reply.finish_reason is not None


class CountingRuntime:
    """A prompt "3 cats" gets "cats cats cats"; one in `faults` fails after its first word; "" is refused.

    most: the most texts that were written at once. after_pass: called after every pass.
    """

    def __init__(self, parallel: int = 2, after_pass: Callable[[], object] = lambda: None):
        self.parallel = parallel
        self.faults: dict[str, OffloadError] = {}
        self.prompts: list[Any] = []
        self.most = 0
        self.after_pass = after_pass

    def shared_passes(self) -> "Passes":
        return Passes(self)

    def passed(self, texts: int) -> None:
        """Note a pass."""
        self.most = max(self.most, texts)
        self.after_pass()

    def __enter__(self) -> "CountingRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held here."""


class Passes:
    """What `OffloadRuntime.shared_passes` gives."""

    def __init__(self, runtime: CountingRuntime):
        self._runtime = runtime
        self.texts: list[Text] = []

    @property
    def free(self) -> int:
        return self._runtime.parallel - len(self.texts)

    def add(self, request: GenerationRequest) -> Text:
        assert self.free > 0
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        if not prompt:
            raise PromptError("the prompt is empty: there is nothing to continue")
        count, word = prompt.split()
        self._runtime.prompts.append(request.prompt)
        text = Text(request, [word] * int(count))
        self.texts.append(text)
        return text

    def step(self) -> list[tuple[Text, Any]]:
        steps = []
        for text in [*self.texts]:
            fault = self._runtime.faults.get(text.request.prompt) if text.reply.text else None
            if fault is not None:
                text.error = fault
            elif text.request.arguments["should_stop"]():
                text.reply.finish_reason = "interrupted"
            else:
                self._write(text)
                steps.append((text, SimpleNamespace(token_ids=[1])))
            if text.done:
                self.remove(text)
        self._runtime.passed(len(steps))
        return steps

    def remove(self, text: Text) -> None:
        if text in self.texts:
            self.texts.remove(text)
            text.reply.finish_reason = text.reply.finish_reason or "interrupted"

    def _write(self, text: Text) -> None:
        reply = text.reply
        reply.text = f"{reply.text} {text.words.pop()}".strip()
        reply.token_ids.append(1)
        reply.stats.tokens, reply.stats.passes = reply.stats.tokens + 1, reply.stats.passes + 1
        reply.finish_reason = None if text.words else "stop"

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *exception: object) -> None:
        for text in [*self.texts]:
            self.remove(text)
