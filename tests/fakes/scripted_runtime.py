"""A runtime that says what it is told to, for tests of the chat; and that chat, to run in a terminal of its own.

python -m tests.fakes.scripted_runtime SECONDS_PER_STEP [chat options]

Where SCRIPTED_LOADING names a FIFO, loading waits for what is written there: "warn" and "read HALF WHOLE" are done,
"fail" fails, "go" ends it.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from loaders.progress import StageProgress
from loaders.sizes import GIB
from offload_runtime.chat import command
from offload_runtime.chat.background import Loaded, Loading
from offload_runtime.chat.thinking import Thinking
from offload_runtime.errors import ModelFilesError, PromptError
from offload_runtime.options.sampling_options import SamplingOptions
from scheduler.plan.plan import Limits, Plan, make_plan
from tests.plan_samples import TINY, cpu

if TYPE_CHECKING:
    from offload_runtime.chat.session import Chat
    from offload_runtime.text.conversation import Conversation

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


def scripted_plan(context_length: int = 4096) -> Plan:
    return make_plan(TARGET, None, cpu(64 * GIB), Limits(context_length=context_length))


class ScriptedRuntime:
    """Says `replies` in turn, the last one ever after, two tokens a step; notes what it was asked."""

    def __init__(self, replies: Sequence[str] = ("hello world",), context_length: int = 4096, seconds: float = 0.0):
        from tests.samples.tokenizer_samples import byte_level  # imports torch: a chat's prompt stands before that

        self.tokenizer = byte_level()
        self.plan = scripted_plan(context_length)
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
        from offload_runtime.text.reply_text import ReplyText

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
        self.close()

    def close(self) -> None:
        """As of the real one; nothing is held here."""


def held_up(progress: StageProgress) -> None:
    """Load for as long as a test wants, by a pool as readers have: Python's own end would wait for it."""
    if file := os.environ.get("SCRIPTED_LOADING"):
        ThreadPoolExecutor(1).submit(_obey, file, progress).result()


def _obey(file: str, progress: StageProgress) -> None:
    with open(file, encoding="utf-8") as orders:  # noqa: PTH123
        for order in orders:
            word, *numbers = order.split()
            if word == "read":
                progress("loading target", int(numbers[0]), int(numbers[1]))
            elif word == "warn":
                warnings.warn("the disk is slow", stacklevel=1)
            elif word == "fail":
                raise ModelFilesError(BROKEN)
            else:
                return


def loaded(runtime: Any, conversation: "Conversation") -> Loading:
    """What a chat begins with where everything is there."""
    return Loading.done(Loaded(runtime, conversation, Thinking(conversation)))


def chat_with(
    runtime: "ScriptedRuntime", lines: list[str], last: Path | None = None, overflow: str = "stop", raw: bool = False
) -> "Chat":
    """A chat in which `lines` have been typed, followed by Ctrl-D."""
    rest = iter(lines)

    def read_line(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    from offload_runtime.chat.session import Chat
    from offload_runtime.chat.terminal.screen import Screen
    from offload_runtime.text.conversation import Conversation

    beginning = loaded(runtime, Conversation(runtime.tokenizer, raw=raw))
    chat = Chat(beginning, SamplingOptions(), Screen(), read_line, last, overflow)
    assert chat.run() == 0
    return chat


def run_chat(runtime: ScriptedRuntime, arguments: Sequence[str]) -> int:
    """The chat's own `main`, with everything that would read a model replaced by `runtime`."""
    return _run(lambda: runtime, runtime.plan, arguments)


def _run(runtime: Callable[[], ScriptedRuntime], plan: Plan, arguments: Sequence[str]) -> int:
    def new_conversation(options: object, arguments: argparse.Namespace) -> "Conversation":
        from offload_runtime.text.conversation import Conversation

        return Conversation(runtime().tokenizer, arguments.system, arguments.raw)

    def load_behind(
        options: object, preparation: object, arguments: argparse.Namespace, progress: StageProgress
    ) -> Loaded:
        held_up(progress)
        conversation = new_conversation(options, arguments)
        return Loaded(runtime(), conversation, Thinking(conversation))  # type: ignore[arg-type]

    seams = {
        "prepare": lambda options: SimpleNamespace(plan=plan, draft_note=None, link_note=None, packing=None),
        "_new_conversation": new_conversation,
        "_load": lambda preparation, progress: runtime(),
        "_load_behind": load_behind,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, replacement in seams.items():
            patch.setattr(command, name, replacement)
        return command.run(arguments)


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    sys.exit(
        _run(cache(lambda: ScriptedRuntime([STORY, "second reply"], seconds=seconds)), scripted_plan(), sys.argv[2:])
    )
