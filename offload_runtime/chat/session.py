"""The chat itself: read a line, answer it, keep the conversation whatever happens."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.quantize.interrupts import interrupts_deferred
from offload_runtime.chat.background import Loaded, Loading, WaitStopped
from offload_runtime.chat.commands import is_command, run_slash_command, takes_lines
from offload_runtime.chat.context_room import MAKE_ROOM, ContextRoom
from offload_runtime.chat.saved import keep_chat
from offload_runtime.chat.status import plan_line, reply_line
from offload_runtime.chat.streaming import ReplyStream
from offload_runtime.chat.terminal.interrupt import LEAVE_WITHIN, Leave, ended_in_order
from offload_runtime.chat.terminal.keyboard import ReadLine, without_echo
from offload_runtime.chat.terminal.screen import Screen
from offload_runtime.chat.thinking import check_mode
from offload_runtime.errors import INTERRUPTED_EXIT_CODE, OffloadError, PromptError, UsageError
from offload_runtime.options.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.text.conversation import Conversation, Snapshot

QUOTES = '"""'
WAIT_STOPPED = "given up; loading goes on"
INTERRUPT_HINT = "Ctrl-C again within 2 s, Ctrl-D or /bye leaves; while a reply is written, Ctrl-C stops it"


class Chat:
    """A conversation at a terminal, with the settings that commands change.

    `runtime` and `conversation` wait until they are loaded. system, thinking: settings of the conversation; changes
    made before it is loaded are applied then. last: the file that keeps the conversation when the chat ends; None keeps
    nothing. overflow: "drop" drops the oldest turns when a reply would have no room, "stop" leaves that to the user.
    """

    def __init__(
        self,
        loading: Loading,
        sampling: SamplingOptions,
        screen: Screen,
        read_line: ReadLine,
        last: Path | None = None,
        overflow: str = "stop",
        system: str | None = None,
        thinking: str = "show",
    ):
        self.loading = loading
        self.sampling = sampling
        self.screen = screen
        self.last = last
        self.last_reply: Reply | None = None
        self.leaving = False
        self._loaded: Loaded | None = None
        self._system, self._thinking, self._overflow = system, thinking, overflow
        self._before: Snapshot | None = None
        self._read_line = read_line
        self._stream = ReplyStream(screen, self._abandon)
        self._restore_terminal: Callable[[], None] = lambda: None
        self._replies_before: Reply | None = None
        self._hinted_at = float("-inf")

    @property
    def loaded(self) -> bool:
        """Whether everything replies need was loaded when last checked."""
        return self._loaded is not None

    @property
    def runtime(self) -> "OffloadRuntime":
        return self._ready().runtime

    @property
    def conversation(self) -> "Conversation":
        return self._ready().conversation

    @cached_property
    def room(self) -> ContextRoom:
        """How full the context is."""
        return ContextRoom(self.conversation, self.runtime.context_length, self._overflow, self.screen)

    @property
    def system(self) -> str | None:
        """The system message that is, or will be, the conversation's."""
        return self._loaded.conversation.system if self._loaded else self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if self._loaded:
            self.conversation.set_system(text)
        self._system = text

    @property
    def thinking(self) -> str:
        """How thoughts are shown: one of `arguments.THINKING`."""
        return self._loaded.thinking.mode if self._loaded else self._thinking

    @thinking.setter
    def thinking(self, mode: str) -> None:
        check_mode(mode)
        if self._loaded:
            self._loaded.thinking.set(mode)
        self._thinking = mode

    @property
    def thinking_note(self) -> str | None:
        """A note for the user on how thoughts are handled, if there is one."""
        return self._loaded.thinking.note if self._loaded else None

    def _ready(self) -> Loaded:
        """Wait for everything replies need and return it. Ctrl-C raises WaitStopped."""
        if self._loaded is None:
            self._loaded = self._stream.wait(self.loading)
            self._take_up(self._loaded)
        return self._loaded

    def _take_up(self, loaded: Loaded) -> None:
        """Show the warnings of loading and apply what commands changed meanwhile."""
        for note in self.loading.notes:
            self.screen.say(note)
        loaded.thinking.set(self._thinking)
        if loaded.thinking.note:
            self.screen.note(loaded.thinking.note)
        if loaded.conversation.system != self._system:
            loaded.conversation.set_system(self._system)
        self._before = loaded.conversation.snapshot()

    def run(self) -> int:
        """Answer until the user leaves; return the exit code. A second Ctrl-C raises Leave."""
        with ended_in_order():
            try:
                if self.loading.finished:
                    self._ready()
                while not self.leaving:
                    try:
                        self._turn()
                    except EOFError:
                        break
                    except Leave:
                        raise
                    except KeyboardInterrupt:
                        self._hint_or_leave()
            finally:
                with interrupts_deferred():
                    self._keep()
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

    def _turn(self) -> None:
        line = self._read_line(">>> ")
        act = self._command if is_command(line) else self.answer
        text = self._whole_message(line)
        self._hinted_at = float("-inf")
        with without_echo() as self._restore_terminal, self._stream.interrupt:
            self._do(act, text)

    def _command(self, line: str) -> None:
        run_slash_command(self, line)

    def _do(self, act: Callable[[str], None], text: str) -> None:
        """Call `act`; a user's mistake becomes a message and leaves the conversation as it was."""
        self._before = self._loaded.conversation.snapshot() if self._loaded else None
        try:
            if self.loading.finished:
                self._ready()
            act(text)
        except WaitStopped:
            self.screen.note(WAIT_STOPPED)
        except OffloadError as error:
            if error is self.loading.error:
                raise
            if self._before is not None:
                self.conversation.restore(self._before)
            too_long = isinstance(error, PromptError) and len(self.conversation.messages) > 1
            self.screen.error(f"{error}\n{MAKE_ROOM}" if too_long else error)

    def _reply(self, prompt_ids: Callable[[], list[int]], sampling: SamplingOptions) -> None:
        before, plan = self.conversation.snapshot(), self.runtime.plan
        ids = self.room.before_reply(prompt_ids(), sampling.max_new_tokens)
        self._replies_before = self.runtime.last_reply
        try:
            think = self.screen.think if self._ready().thinking.is_shown else None
            reply = self._stream.run(self.runtime, self.conversation, ids, sampling, self.screen.write, think)
        except Leave:
            self._take_up_reply()
            raise
        self.screen.end_reply()
        if self.runtime.plan is not plan:
            self.screen.note(
                f"the device ran out of memory, so the models were loaded anew: {plan_line(self.runtime.plan)}"
            )
        if not self._take_up_reply():
            self.conversation.restore(before)
            self.screen.note("stopped before the first token: the conversation is as it was")
            return
        self.last_reply = reply
        self._report(reply, len(ids) + len(reply.token_ids))

    def _take_up_reply(self) -> bool:
        """Add what was generated so far to the conversation, once; False if that is nothing."""
        if self._loaded is None:
            return False
        reply = self.runtime.last_reply
        if reply is self._replies_before or not reply.token_ids:
            return False
        self._replies_before = reply
        end_ids = self.runtime.end_token_ids | self.conversation.end_token_ids
        self.conversation.add_reply(reply.token_ids, reply.text, end_ids)
        return True

    def _report(self, reply: "Reply", tokens_in_context: int) -> None:
        stopped = "stopped · " if reply.finish_reason == "interrupted" else ""
        self.screen.note(stopped + reply_line(reply.stats, self.runtime.plan, tokens_in_context))
        full = self.room.after_reply(tokens_in_context)
        if reply.finish_reason == "length" and not full:
            self.screen.note(f"stopped at max_new_tokens = {len(reply.token_ids)}")

    def _whole_message(self, line: str) -> str:
        """The typed text, with further lines read if it begins with triple quotes; empty if Ctrl-C ends that.

        A text that already has several lines was pasted or typed with Alt-Enter and stays as it is.
        """
        before, quotes, text = line.partition(QUOTES)
        if not quotes or "\n" in line or not (not before.strip() or takes_lines(before)):
            return line
        try:
            while not text.rstrip().endswith(QUOTES):
                text += "\n" + self._read_line("... ")
        except KeyboardInterrupt:
            return ""
        return before.lstrip() + text.rstrip().removesuffix(QUOTES).strip("\n")

    def _hint_or_leave(self) -> None:
        """At the prompt: the first Ctrl-C explains; one within two seconds of another, also in a reply, leaves."""
        now = time.monotonic()
        if now - max(self._hinted_at, self._stream.interrupt.pressed_at) <= LEAVE_WITHIN:
            raise Leave
        self._hinted_at = now
        self.screen.say(INTERRUPT_HINT)

    def _keep(self) -> None:
        """Keep the conversation for `/load last`, unless it is empty."""
        if self.last is None or self._loaded is None:
            return
        if all(message["role"] == "system" for message in self.conversation.messages):
            return
        with suppress(OSError):  # the terminal may be gone
            try:
                keep_chat(self.last, self.conversation, self.sampling)
                self.screen.note("the conversation is kept: /load last goes on with it")
            except UsageError as error:
                self.screen.note(f"the conversation could not be kept: {error}")

    def _abandon(self) -> None:
        """End the process from another thread while the main thread is inside a call that cannot be interrupted."""
        try:
            self._take_up_reply()
            self._keep()
        finally:
            self._restore_terminal()
            os._exit(INTERRUPTED_EXIT_CODE)
