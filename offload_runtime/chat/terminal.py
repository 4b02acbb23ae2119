"""The chat's screen and keyboard: reply text on stdout, everything else on stderr."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console

from loaders.message_text import displayable, message_text

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

ReadLine = Callable[[str], str]
"""Reads what is typed after a prompt; raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C."""

# A model can write any character: those that steer a terminal are not sent to one.
CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")


class Screen:
    """Where a chat writes. `quiet` leaves out the notes; answers to commands and errors always come."""

    def __init__(self, quiet: bool = False):
        # Lines are broken between words for people only: what a program reads keeps its lines.
        keep_lines = not sys.stderr.isatty()
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=keep_lines)
        self.quiet = quiet
        self._controls = CONTROLS if sys.stdout.isatty() else {}
        self._open_line = False

    def write(self, text: str) -> None:
        """Write a piece of a reply, at once."""
        if text:
            sys.stdout.write(text.translate(self._controls))
            sys.stdout.flush()
            self._open_line = not text.endswith("\n")

    def end_reply(self) -> None:
        """End the reply's last line, if it is not ended."""
        if self._open_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """Write what is good to know, dimmed."""
        if not self.quiet:
            self.console.print(displayable(text), style="dim")

    def say(self, text: str) -> None:
        """Write what was asked for, or must be known."""
        self.console.print(displayable(text))

    def busy(self, what: str) -> AbstractContextManager[object]:
        """A sign of life for the block, on a terminal."""
        return nullcontext() if self.quiet or not self.console.is_terminal else self.console.status(what)

    def error(self, text: object) -> None:
        """Write what went wrong."""
        self.end_reply()
        self.console.print(message_text(f"error: {text}"))


def line_reader() -> ReadLine:
    """Line editing with history and bracketed paste on a terminal, the system's own readline elsewhere."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        session = _session()
        return lambda prompt: _valid_text(session.prompt(prompt))
    return _read_plainly


def _read_plainly(prompt: str) -> str:
    import readline  # noqa: F401  # input() then edits lines

    sys.stderr.write(prompt)
    sys.stderr.flush()
    return _valid_text(input())


def _valid_text(text: str) -> str:
    """`text` with bytes that are not UTF-8 (surrogates, as Python reads them) replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _session() -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = create_output(stdout=sys.stderr)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # nothing here needs to know where the cursor is, and not every terminal answers
    return PromptSession(
        multiline=True,  # a paste of several lines stays one message
        prompt_continuation=lambda width, line, wrapped: "... "[:width],
        key_bindings=_keys(),
        history=InMemoryHistory(),
        output=output,
        reserve_space_for_menu=0,
    )


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")
    def send(event: "KeyPressEvent") -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def discard_or_interrupt(event: "KeyPressEvent") -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys
