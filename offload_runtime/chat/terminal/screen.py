"""The chat's screen: reply text on stdout, everything else on stderr."""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console

from loaders.message_text import displayable, message_text
from offload_runtime.chat.terminal.activity import ActivityLine, column_after

# A model can write any character: control characters are not sent to a terminal.
CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")


class Screen:
    """Where a chat writes. `quiet` drops the notes; answers to commands and errors are always shown.

    `show_activity` and `answer_interrupt` may be called by another thread.
    """

    def __init__(self, quiet: bool = False):
        # Lines are wrapped for people only; a program that reads stderr gets them whole.
        keep_lines = not sys.stderr.isatty()
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=keep_lines)
        self.quiet = quiet
        self._activity = ActivityLine(self.console)
        self._controls = CONTROLS if sys.stdout.isatty() else {}
        self._open_line = self._open_thought = False
        self._column = 0
        self._lock = threading.RLock()

    def write(self, text: str) -> None:
        """Write a piece of a reply at once."""
        if text:
            with self._lock:
                self._activity.erase()
                self._end_thought("\n\n")
                shown = text.translate(self._controls)
                sys.stdout.write(shown)
                sys.stdout.flush()
                self._open_line = not text.endswith("\n")
                if sys.stdout.isatty():
                    self._column = column_after(shown, self._column, self.console.width)

    def think(self, text: str) -> None:
        """Write a piece of the model's thoughts at once, dimmed; it is not part of the reply."""
        if text and not self.quiet:
            with self._lock:
                self._activity.erase()
                self._to_console(text.translate(CONTROLS) if self.console.is_terminal else text)
                self._open_thought = True

    def _end_thought(self, end: str) -> None:
        if self._open_thought:
            self._to_console(end)
            self._open_thought = False

    def _to_console(self, text: str) -> None:
        self.console.out(text, style="dim", end="", highlight=False)
        self._column = column_after(text, self._column, self.console.width)

    def end_reply(self) -> None:
        """End the reply's last line if it has not ended."""
        self._end_thought("\n")
        if self._open_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """Write a dimmed note."""
        if not self.quiet:
            self._print(displayable(text), "dim")

    def say(self, text: str) -> None:
        """Write an answer to a command, or something the user must know."""
        self._print(displayable(text))

    def error(self, text: object) -> None:
        """Write an error."""
        self.end_reply()
        self._print(message_text(f"error: {text}"))

    def _print(self, text: str, style: str | None = None) -> None:
        with self._lock:
            self._activity.erase()
            self.console.print(text, style=style)

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Show activity during the block, on a terminal."""
        return nullcontext() if self.quiet or not self.console.is_terminal else self.console.status(what)

    def show_activity(self, texts: Sequence[str]) -> None:
        """Draw the first of `texts` that fits after the text on screen."""
        with self._lock:
            if not self.quiet:
                self._activity.draw(self._column, texts)

    def hide_activity(self) -> None:
        """Erase what `show_activity` drew."""
        with self._lock:
            self._activity.erase()

    def answer_interrupt(self, text: str, showing: Callable[[], None]) -> None:
        """Show on a terminal that Ctrl-C was noticed, whatever the main thread is doing; `showing` is called before."""
        with self._lock:
            showing()
            if self._activity.possible:
                self._activity.interject(self._column, text)
                if self._column:
                    self._column, self._open_line = 0, False
