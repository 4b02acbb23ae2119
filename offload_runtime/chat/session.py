"""The chat itself: read a line, answer it, keep the conversation whatever happens."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from offload_runtime.chat.commands import is_command, run_command
from offload_runtime.chat.interrupt import StopOnInterrupt
from offload_runtime.chat.status import plan_line, reply_line
from offload_runtime.chat.terminal import ReadLine, Screen
from offload_runtime.conversation import Conversation
from offload_runtime.errors import OffloadError, PromptError, UsageError
from offload_runtime.options import SamplingOptions

if TYPE_CHECKING:
    from offload_runtime.reply import Reply
    from offload_runtime.runtime import OffloadRuntime

QUOTES = '"""'
DOUBLE_PRESS_SECONDS = 1.0
INTERRUPT_HINT = "Ctrl-C again, Ctrl-D or /bye leaves; while a reply is written, Ctrl-C stops it"
MAKE_ROOM = "/undo takes back the last message and its reply, /clear begins a new conversation"


def stream_reply(
    runtime: "OffloadRuntime",
    conversation: Conversation,
    ids: list[int],
    sampling: SamplingOptions,
    should_stop: Callable[[], bool],
    write: Callable[[str], None],
) -> "Reply":
    """Generate a reply to the conversation's prompt `ids`, write its text as it comes, return it whole or stopped."""
    ends = conversation.end_token_ids
    for step in runtime.stream(ids, end_token_ids=ends, should_stop=should_stop, **sampling.as_arguments()):
        write(step.text)
    return runtime.last_reply


class Chat:
    """A conversation at a terminal, with the settings that commands change."""

    def __init__(
        self,
        runtime: "OffloadRuntime",
        conversation: Conversation,
        sampling: SamplingOptions,
        screen: Screen,
        read_line: ReadLine,
    ):
        self.runtime = runtime
        self.conversation = conversation
        self.sampling = sampling
        self.screen = screen
        self.last_reply: Reply | None = None
        self.leaving = False
        self._read_line = read_line
        self._interrupt = StopOnInterrupt()
        self._hinted = False

    def run(self) -> int:
        """Answer until the user leaves; return the exit code. A second Ctrl-C raises KeyboardInterrupt."""
        while not self.leaving:
            try:
                line = self._read_line(">>> ")
                act = self._command if is_command(line) else self.answer
                text = self._read_quoted(line) if line.lstrip().startswith(QUOTES) else line
            except EOFError:
                break
            except KeyboardInterrupt:
                self._hint_or_leave()
                continue
            self._hinted = False
            with self._interrupt:
                self._do(act, text)
        return 0

    def answer(self, text: str) -> None:
        """Add a message and stream the reply to it; nothing for an empty one."""
        if text.strip():
            self._reply(lambda: self.conversation.add_user(text), self.sampling)

    def regenerate(self, sampling: SamplingOptions) -> None:
        """Stream another reply in place of the last one."""

        def prompt_ids() -> list[int]:
            if not self.conversation.drop_reply():
                raise UsageError("there is no reply to write again")
            return self.conversation.prompt_ids()

        self._reply(prompt_ids, sampling)

    def _command(self, line: str) -> None:
        run_command(self, line)

    def _do(self, act: Callable[[str], None], text: str) -> None:
        """Act; a mistake of the user's ends in a message and leaves the conversation as it was."""
        before = self.conversation.snapshot()
        try:
            act(text)
        except OffloadError as error:
            self.conversation.restore(before)
            too_long = isinstance(error, PromptError) and len(self.conversation.messages) > 1
            self.screen.error(f"{error}\n{MAKE_ROOM}" if too_long else error)

    def _reply(self, prompt_ids: Callable[[], list[int]], sampling: SamplingOptions) -> None:
        before, plan = self.conversation.snapshot(), self.runtime.plan
        ids = prompt_ids()
        reply = stream_reply(
            self.runtime, self.conversation, ids, sampling, self._interrupt.requested, self.screen.write
        )
        self.screen.end_reply()
        if self.runtime.plan is not plan:
            self.screen.note(
                f"the device ran out of memory, so the models were loaded anew: {plan_line(self.runtime.plan)}"
            )
        if not reply.token_ids:
            self.conversation.restore(before)
            self.screen.note("\nstopped before the first token: the conversation is as it was")
            return
        end_ids = self.runtime.end_token_ids | self.conversation.end_token_ids
        self.conversation.add_reply(reply.token_ids, reply.text, end_ids)
        self.last_reply = reply
        self._report(reply, len(ids) + len(reply.token_ids))

    def _report(self, reply: "Reply", tokens_in_context: int) -> None:
        stopped = "stopped · " if reply.finish_reason == "interrupted" else ""
        self.screen.note(stopped + reply_line(reply.stats, self.runtime.plan, tokens_in_context))
        if tokens_in_context >= self.runtime.context_length:
            self.screen.say(f"The context is full ({self.runtime.context_length} tokens): {MAKE_ROOM}")
        elif reply.finish_reason == "length":
            self.screen.note(f"stopped at max_new_tokens = {len(reply.token_ids)}")

    def _read_quoted(self, line: str) -> str:
        """The message that begins with triple quotes, read on until they end; empty if Ctrl-C gives it up."""
        text = line.lstrip().removeprefix(QUOTES)
        try:
            while not text.rstrip().endswith(QUOTES):
                text += "\n" + self._read_line("... ")
        except KeyboardInterrupt:
            return ""
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def _hint_or_leave(self) -> None:
        """At an empty prompt: the first Ctrl-C explains. The next one, or the second of a quick pair, leaves."""
        if self._hinted or time.monotonic() - self._interrupt.pressed_at < DOUBLE_PRESS_SECONDS:
            raise KeyboardInterrupt
        self._hinted = True
        self.screen.say(INTERRUPT_HINT)
