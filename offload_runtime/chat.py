"""Chat with a model that is larger than the device's memory: `python -m offload_runtime.chat --help`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offload_runtime.errors import INTERRUPTED_EXIT_CODE, OffloadError, PromptError, UsageError, exit_code
from offload_runtime.options import SamplingOptions, model_options, parse_chat_arguments, sampling_options
from offload_runtime.planning import DEMO_TARGET, Preparation, prepare

# The rest is imported where it is used: `--help` and `--plan` answer before torch could have been imported.
if TYPE_CHECKING:
    from offload_runtime.conversation import Conversation
    from offload_runtime.planning import Options
    from offload_runtime.reply import Reply
    from offload_runtime.runtime import OffloadRuntime
    from offload_runtime.terminal import ReadLine, Screen

DOUBLE_PRESS_SECONDS = 1.0
MAKE_ROOM = "/undo takes back the last message and its reply, /clear begins anew"


class Chat:
    """A conversation at a terminal. `run` returns the exit code; Ctrl-C twice raises KeyboardInterrupt."""

    def __init__(
        self,
        runtime: "OffloadRuntime",
        conversation: "Conversation",
        sampling: SamplingOptions,
        screen: "Screen",
        read_line: "ReadLine",
    ):
        self.runtime = runtime
        self.conversation = conversation
        self.sampling = sampling
        self.screen = screen
        self.last_reply: Reply | None = None
        self.leaving = False
        self._read_line = read_line
        self._should_stop: Callable[[], bool] = lambda: False

    def run(self) -> int:
        """Read and answer until the user leaves."""
        from offload_runtime.interrupt import StopOnInterrupt

        interrupt = StopOnInterrupt()
        self._should_stop = interrupt.requested
        hinted = False
        while not self.leaving:
            try:
                line = self._read_line(">>> ")
            except EOFError:
                break
            except KeyboardInterrupt:
                if hinted or time.monotonic() - interrupt.pressed_at < DOUBLE_PRESS_SECONDS:
                    raise
                hinted = True
                self.screen.say("Ctrl-C again, Ctrl-D or /bye leaves; while a reply is written, Ctrl-C stops it")
                continue
            hinted = False
            with interrupt:
                self.handle(line)
        return 0

    def handle(self, line: str) -> None:
        """Carry out a command or answer a message. The user's mistakes end in a message, never in an exception."""
        from offload_runtime.chat_commands import is_command, run_command

        try:
            if is_command(line):
                run_command(self, line)
            elif line.strip():
                self.answer(line)
        except PromptError as error:
            self.screen.error(f"{error}\n{MAKE_ROOM}")
        except OffloadError as error:
            self.screen.error(error)

    def answer(self, text: str) -> None:
        """Add a message and stream the reply to it."""
        before = self.conversation.snapshot()
        self._reply(self.conversation.add_user, text)

    def regenerate(self, sampling: SamplingOptions) -> None:
        """Replace the last reply by another one."""
