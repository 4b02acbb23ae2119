"""A runtime that says what it is told to, for tests of the chat; and that chat, to run in a terminal of its own.

python -m tests.scripted_runtime SECONDS_PER_STEP [chat options]
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from offload_runtime.chat import command
from offload_runtime.conversation import Conversation
from offload_runtime.errors import ModelFilesError, PromptError
from offload_runtime.reasoning.reply_text import ReplyText
from scheduler.plan import Limits, make_plan
from scheduler.sizes import GIB
from tests.plan_samples import TINY, cpu
from tests.tokenizer_samples import byte_level

STORY = "Grüße 😀 once upon a time, \x1b[31m你好 hello world. " * 8
TARGET = replace(TINY, max_positions=4096)
BROKEN = "the disk broke"


@dataclass
class Stats:
    passes: int = 0
    tokens: int = 0
    drafted: int = 40
    accepted: int = 10
    tokens_per_pass: float = 2.0
    tokens_per_second: float = 1.3
    seconds_to_first_token: float | None = 4.9
    draft_seconds: float = 0.5
    target_seconds: float = 2.5
    streamed_bytes: int = 0
    link_bytes_per_second: float = 1.6e9
    peak_device_bytes: int = 10_000_000
    predicted_passes: int = 0
    prompt_tokens: int = 0
    prompt_tokens_read: int = 0
    prompt_tokens_per_second: float | None = None
    reply_tokens_per_second: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Reply:
    seed: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    stats: Stats = field(default_factory=Stats)


class ScriptedRuntime:
    """Says `replies` in turn, the last one ever after, two tokens a step; notes what it was asked."""

    def __init__(self, replies: Sequence[str] = ("hello world",), context_length: int = 4096, seconds: float = 0.0):
        self.tokenizer = byte_level()
        self.plan = make_plan(TARGET, None, cpu(64 * GIB), Limits(context_length=context_length))
        self.packing = None
        self.context_length = context_length
        self.generation_defaults = SimpleNamespace(
            temperature=0.6, top_k=0, top_p=0.9, min_p=0.0, repetition_penalty=1.0
        )
        self.end_token_ids = frozenset([self.tokenizer.eos_token_id])
        self.progress = None
        self.prompts: list[list[int]] = []
        self.asked: list[dict[str, Any]] = []
        self.last_reply = Reply(0)
        self._replies = list(replies)
        self._seconds = seconds

    def default_of(self, name: str) -> object:
        return getattr(self.generation_defaults, name, {"seed": "fresh"}.get(name, "none"))

    def stream(
        self,
        ids: list[int],
        should_stop: Callable[[], bool],
        max_new_tokens: int | None,
        seed: int | None,
        **asked: Any,
    ) -> Iterator[SimpleNamespace]:
        self.prompts.append(ids)
        self.asked.append({"seed": seed, "max_new_tokens": max_new_tokens, **asked})
        if len(ids) >= self.context_length:
            raise PromptError(f"the prompt has {len(ids)} tokens, the context holds {self.context_length}")
        self.last_reply = Reply(1000 + len(self.prompts) if seed is None else seed)
        text = self._replies[min(len(self.prompts), len(self._replies)) - 1]
        written = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        most = min(max_new_tokens or self.context_length, self.context_length - len(ids))
        return self._steps(written, most, should_stop, text == BROKEN)

    def _steps(
        self, written: list[int], most: int, should_stop: Callable[[], bool], breaks: bool
    ) -> Iterator[SimpleNamespace]:
        reply, text = self.last_reply, ReplyText(self.tokenizer)
        end = min(most, len(written))
        for start in range(0, end, 2):
            time.sleep(self._seconds)
            if breaks and start:
                raise ModelFilesError(BROKEN)
            ids = [] if should_stop() else written[start : min(start + 2, end)]
            last = not ids or start + 2 >= end
            if last:
                reply.finish_reason = "interrupted" if not ids else "stop" if end == len(written) else "length"
            pieces = [*(text.push(token) for token in ids), *([text.finish()] if last else [])]
            thought, new = "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)
            reply.token_ids += ids
            reply.text += new
            reply.reasoning += thought
            reply.stats.tokens += len(ids)
            reply.stats.passes += bool(ids)
            yield SimpleNamespace(token_ids=ids, text=new, reasoning=thought, finish_reason=reply.finish_reason)
            if last:
                return

    def __enter__(self) -> "ScriptedRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def run_chat(runtime: ScriptedRuntime, arguments: Sequence[str]) -> int:
    """The chat's own `main`, with everything that would read a model replaced by `runtime`."""
    kept = command.prepare, command._new_conversation, command._load
    try:
        nothing_else = {"draft_note": None, "packing": None}
        command.prepare = lambda options: SimpleNamespace(plan=runtime.plan, **nothing_else)  # type: ignore[assignment]
        command._new_conversation = lambda model, options: Conversation(runtime.tokenizer, options.system, options.raw)
        command._load = lambda preparation, screen: runtime  # type: ignore[assignment]
        return command.run(arguments)
    finally:
        command.prepare, command._new_conversation, command._load = kept


if __name__ == "__main__":
    sys.exit(run_chat(ScriptedRuntime([STORY, "second reply"], seconds=float(sys.argv[1])), sys.argv[2:]))
