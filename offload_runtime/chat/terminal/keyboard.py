"""The chat's keyboard: line editing at the prompt, and no echo while a reply is generated."""

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
    """Whether prompt_toolkit edits lines and can show progress beside them; else the system's readline reads them."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def line_reader(history: Path | None, completer: "Completer", loading: Loading) -> ReadLine:
    """Line editing with history, completion and bracketed paste on a terminal, the system's readline elsewhere.

    history: the file that keeps what was typed; None keeps it for this session only. loading: begins as soon as the
    prompt is shown, with its progress at the right; its error ends the prompt, and what was typed goes to the history.
    """
    if not edits_lines():
        return _read_plainly
    session = _session(history, completer)
    session.rprompt = lambda: _progress(session.app, loading)
    session.app.after_render += lambda app: _see_to(app, loading)
    return lambda prompt: _valid_text(session.prompt(prompt))


def _progress(app: "Application[str]", loading: Loading) -> "StyleAndTextTuples":
    """The progress at the right; hidden once the typed line reaches it."""
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
        output.enable_cpr = False  # nothing here needs the cursor's position, and not every terminal reports it
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
        """Ignore mouse events: colours in pasted text look like them, and the library's reader fails on those."""

    return keys


@contextmanager
def without_echo() -> Iterator[Callable[[], None]]:
    """In the block, typed text waits, unseen, for the next prompt; Ctrl-C and Ctrl-Z are still signals.

    Bytes are kept raw: a Ctrl-D among them must not count as the end of input now. Yields a function that restores the
    terminal at once, for a thread that ends the process.
    """
    descriptor, before = _terminal_settings()
    if before is None:
        yield lambda: None
        return
    quiet = [*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]

    def apply(settings: list[Any]) -> None:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSANOW, settings)

    # A shell sets the terminal its own way, and continues a program with those settings after Ctrl-Z.
    previous: Any = signal.signal(signal.SIGCONT, lambda number, frame: apply(quiet))
    try:
        apply(quiet)
        yield lambda: apply(before)
    finally:
        signal.signal(signal.SIGCONT, previous)
        apply(before)


def _terminal_settings() -> tuple[int, list[Any] | None]:
    """Descriptor and settings of standard input; None for the settings if it is not a terminal."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor, termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        return -1, None
