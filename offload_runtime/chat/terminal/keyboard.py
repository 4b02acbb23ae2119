"""The chat's keyboard: line editing at the prompt, and silence while a reply is written."""

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offload_runtime.chat.background import Loading

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import Application
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

ReadLine = Callable[[str], str]
"""Reads what is typed after a prompt; raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C."""


def edits_lines() -> bool:
    """Whether lines are edited here, with room to show what goes on behind; else the system's readline reads them."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def line_reader(history: Path | None, completer: "Completer", loading: Loading) -> ReadLine:
    """Line editing with history, completion and bracketed paste on a terminal, the system's own readline elsewhere.

    history: the file that keeps what was typed; None keeps it until the end. loading: is begun as soon as the prompt
    stands, shown at its right, and ends it with an error of its own; what was typed is then in the history.
    """
    if not edits_lines():
        return _read_plainly
    session = _session(history, completer)
    session.rprompt = lambda: _progress(session.app, loading)
    session.app.after_render += lambda app: _see_to(app, loading)
    return lambda prompt: _valid_text(session.prompt(prompt))


def _progress(app: "Application[str]", loading: Loading) -> "StyleAndTextTuples":
    """Gives way to a line that is typed as far as there."""
    room = app.output.get_size().columns // 2
    texts = [] if app.is_done else [text for text in loading.texts() if len(text) < room]
    return [("fg:ansibrightblack", f"{text} ") for text in texts[:1]]


def _see_to(app: "Application[str]", loading: Loading) -> None:
    loading.begin(app.invalidate)
    if loading.error is not None and not app.is_done:
        app.current_buffer.append_to_history()
        app.exit(exception=loading.error)


def _read_plainly(prompt: str) -> str:
    import readline  # noqa: F401  # input() then edits lines

    sys.stderr.write(prompt)
    sys.stderr.flush()
    return _valid_text(input())


def _valid_text(text: str) -> str:
    """`text` with bytes that are not UTF-8 (surrogates, as Python reads them) replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _session(history: Path | None, completer: "Completer") -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    from offload_runtime.chat.terminal.history import PrivateHistory

    output = create_output(stdout=sys.stderr)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # nothing here needs to know where the cursor is, and not every terminal answers
    return PromptSession(
        multiline=True,  # a paste of several lines stays one message
        prompt_continuation=lambda width, line, wrapped: "... "[:width],
        key_bindings=_keys(),
        history=InMemoryHistory() if history is None else PrivateHistory(history),
        output=output,
        completer=completer,
        complete_style=CompleteStyle.READLINE_LIKE,  # a list above the prompt, which needs no room below it
        complete_while_typing=False,
        enable_suspend=True,
        reserve_space_for_menu=0,
    )


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

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

    @keys.add(Keys.Vt100MouseEvent)
    def ignore(event: "KeyPressEvent") -> None:
        """No mouse is used; colours in pasted text look like its movements, and the library's reader fails on them."""

    return keys


@contextmanager
def without_echo() -> Iterator[Callable[[], None]]:
    """For the block, what is typed waits for the next prompt unseen; Ctrl-C and Ctrl-Z still are signals.

    Bytes wait as they are: a Ctrl-D among them must not be taken for the end of input now. Yields what brings the
    terminal back at once, for a thread that ends the process.
    """
    descriptor, before = _terminal_settings()
    if before is None:
        yield lambda: None
        return
    quiet = [*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]

    def apply(settings: list[Any]) -> None:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSANOW, settings)

    # A shell has settings of its own, and lets go on with them after Ctrl-Z.
    previous: Any = signal.signal(signal.SIGCONT, lambda number, frame: apply(quiet))
    try:
        apply(quiet)
        yield lambda: apply(before)
    finally:
        signal.signal(signal.SIGCONT, previous)
        apply(before)


def _terminal_settings() -> tuple[int, list[Any] | None]:
    """Of standard input; None where it is no terminal."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor, termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        return -1, None
