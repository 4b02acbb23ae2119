"""A runtime for tests of the server: writes several texts side by side, two tokens of each a pass.

Passes can be held up between two layers, counted, and made to fail.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from offload_runtime.errors import ContextLengthError, OffloadError, PromptError, UsageError
from offload_runtime.generation.decode import Step
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.reply import Reply, ReplyStats, with_text
from offload_runtime.options.run_options import check_template_arguments
from offload_runtime.options.sampling_options import SAMPLING
from offload_runtime.speculation.target import PassProgress
from offload_runtime.text.detokenize import StopStrings, check_whole_characters
from offload_runtime.text.reply_text import ReplyText
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.logprobs import TokenLogprobs

TOKENS_PER_PASS = 2
LAYERS = 8
BYTES_PER_PASS = 1000
_TICK = 0.002  # seconds between two looks at whether a held pass may go on
_OTHERS = {"should_stop", "top_logprobs", "response_format", "template_arguments"}


def answer_to(prompt: str) -> str:
    """What the runtime writes: the prompt's words backwards, with accents to be split over tokens."""
    return " ".join(f"é{word[::-1]}" for word in prompt.split()) or "é"


@dataclass(eq=False)
class Text:
    """As `RunningText`. tokens: those still to come."""

    request: GenerationRequest
    tokens: list[int]
    text: ReplyText
    should_stop: Callable[[], bool]
    reply: Reply
    error: OffloadError | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or self.reply.finish_reason is not None


@dataclass
class SharedRuntime:
    """As `OffloadRuntime`, as far as the server uses it.

    seconds: of a pass. held: while it is set, passes wait between two layers, but for so many that are `let`. faults:
    errors of texts whose prompt contains the key, after their first step; "*" fails whole passes. asked: the requests,
    as they began. most: the most texts that were written at once.
    """

    parallel: int = 2
    context_length: int = 4096
    seconds: float = 0.0
    faults: dict[str, Exception] = field(default_factory=dict)
    asked: list[GenerationRequest] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    let: int = 0
    passes: int = 0
    most: int = 0
    open: "list[Text]" = field(default_factory=list)

    @cached_property
    def tokenizer(self) -> Any:
        from tests.samples.tokenizer_samples import byte_level

        return byte_level()

    @property
    def generation_defaults(self) -> Sampling:
        return Sampling(top_p=0.9)

    @property
    def progress(self) -> PassProgress | None:
        return PassProgress(1, 1, LAYERS, 1, 0.0) if self.open else None

    @property
    def plan(self) -> Any:
        from tests.fakes.scripted_runtime import scripted_plan

        return scripted_plan(self.context_length)

    def begin(self, request: GenerationRequest) -> Text:
        arguments = request.arguments
        self.asked.append(request)
        unknown = set(arguments) - set(SAMPLING) - _OTHERS
        if unknown:
            raise UsageError(f"there is no sampling value {min(unknown)!r}")
        check_template_arguments(arguments.get("template_arguments") or {})
        prompt, ids = self._encoded(request.prompt)
        if len(ids) >= self.context_length:
            raise ContextLengthError(f"the prompt has {len(ids)} tokens, the context holds {self.context_length}")
        written = [*self.tokenizer.encode(answer_to(prompt), add_special_tokens=False), self.tokenizer.eos_token_id]
        room = min(arguments.get("max_new_tokens") or self.context_length, self.context_length - len(ids))
        text = ReplyText(self.tokenizer, ids, StopStrings(arguments.get("stop") or ()))
        reply = Reply(seed=arguments.get("seed") or 0, stats=ReplyStats(prompt_tokens=len(ids)))
        return Text(request, written[:room], text, arguments["should_stop"], reply)

    def _encoded(self, prompt: Any) -> tuple[str, list[int]]:
        if isinstance(prompt, list) and isinstance(prompt[0], int):
            if not all(0 <= token < len(self.tokenizer) for token in prompt):
                raise PromptError("the prompt has token ids outside the vocabulary")
            prompt = self.tokenizer.decode(prompt)
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        check_whole_characters(text)
        return text, self.tokenizer.encode(text or "a", add_special_tokens=False)

    def shared_passes(self) -> "SharedPasses":
        return SharedPasses(self)

    def close(self) -> None:
        """Nothing is held here."""

    def __enter__(self) -> "SharedRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SharedPasses:
    """As `OffloadRuntime.shared_passes`: for one thread."""

    def __init__(self, runtime: SharedRuntime):
        self._runtime = runtime
        self._thread = threading.get_ident()

    @property
    def free(self) -> int:
        return self._runtime.parallel - len(self._runtime.open)

    def join(self, text: Text) -> Text:
        assert self.free > 0 and self._thread == threading.get_ident()
        self._runtime.open.append(text)
        self._runtime.most = max(self._runtime.most, len(self._runtime.open))
        return text

    def remove(self, text: Text) -> None:
        assert self._thread == threading.get_ident()
        if text in self._runtime.open:
            self._runtime.open.remove(text)
            text.reply.finish_reason = text.reply.finish_reason or "interrupted"

    def step(self) -> list[tuple[Text, Step]]:
        """One pass: texts that are asked to stop leave it between two layers."""
        runtime = self._runtime
        assert self._thread == threading.get_ident()
        if fault := runtime.faults.get("*"):
            raise fault
        stopped = self._layers()
        runtime.passes += 1
        steps = []
        for text in [*runtime.open]:
            fault = self._fault(text)
            if isinstance(fault, OffloadError):
                text.error = fault
            else:
                steps.append((text, self._step(text, text in stopped)))
            if text.done:
                self.remove(text)
        return steps

    def _layers(self) -> set[Text]:
        runtime, stopped, is_let = self._runtime, set[Text](), False
        for _ in range(LAYERS):
            time.sleep(runtime.seconds / LAYERS)
            while True:
                stopped |= {text for text in runtime.open if text.should_stop()}
                if runtime.let and not is_let:
                    runtime.let, is_let = runtime.let - 1, True
                if not runtime.held.is_set() or is_let or len(stopped) == len(runtime.open):
                    break
                time.sleep(_TICK)
        return stopped

    def _fault(self, text: Text) -> Exception | None:
        prompt = text.request.prompt
        said = prompt if isinstance(prompt, str) else str(prompt[-1])
        found = (fault for part, fault in self._runtime.faults.items() if part in said)
        return next(found, None) if text.reply.token_ids else None

    def _step(self, text: Text, stopped: bool) -> Step:
        ids = [] if stopped else text.tokens[:TOKENS_PER_PASS]
        text.tokens = text.tokens[len(ids) :]
        ends = "stop" if ids and ids[-1] == self._runtime.tokenizer.eos_token_id else "length"
        step = Step(
            token_ids=ids,
            drafted=4,
            accepted=max(0, len(ids) - 1),
            draft_seconds=0.01,
            target_seconds=0.1,
            streamed_bytes=BYTES_PER_PASS,
            finish_reason="interrupted" if stopped else None if text.tokens else ends,
            read_tokens=0 if stopped else 1 + text.reply.stats.prompt_tokens // 2,
            logprobs=self._logprobs(text, ids),
        )
        step = with_text(step, text.text)
        text.reply.add(step)
        return step

    @staticmethod
    def _logprobs(text: Text, ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        top = text.request.arguments.get("top_logprobs")
        if top is None:
            return ()
        others = [(token, -1.0 - token) for token in range(top)]
        return tuple(TokenLogprobs(token, -float("inf") if token < 3 else -0.5, tuple(others)) for token in ids)

    def __enter__(self) -> "SharedPasses":
        return self

    def __exit__(self, *exception: object) -> None:
        for text in [*self._runtime.open]:
            self.remove(text)
