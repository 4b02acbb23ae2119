"""A dim line after the text on screen that says what the machine is doing; erased before anything else is written."""

import os
import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.spinner import Spinner

LEAST_ROOM = 2  # cells: a gap and the spinner

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # text wider than it was thought to be must not move the line
_ERASE = "\x1b[K"  # to the end of the line
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class ActivityLine:
    """Redrawn ten times a second by a thread, so written straight to the terminal: past every buffer and its lock."""

    def __init__(self, console: Console):
        self._console = console
        self._drawn = False
        self.possible = console.is_terminal and not console.is_dumb_terminal
        simple = not console.encoding.lower().startswith("utf")
        self._spinner = Spinner("line" if simple else "dots")

    def draw(self, column: int, texts: Sequence[str]) -> None:
        """Show the first of `texts` that fits after the cursor, which is in `column`; else the spinner alone."""
        room = self._console.width - column - 1  # a full line would leave the cursor nowhere to come back to
        if not self.possible or room < LEAST_ROOM:
            return
        gap = " " if column else ""
        frame = str(self._spinner.render(time.monotonic()))
        lines = (f"{gap}{frame} {text}" for text in texts)
        line = next((line for line in lines if cell_len(line) <= room), gap + frame)
        self._put(f"{_SAVE}{_NO_WRAP}{_ERASE}{_DIM}{line}{_PLAIN}{_WRAP}{_RESTORE}")
        self._drawn = True

    def erase(self) -> None:
        """Erase what was drawn."""
        if self._drawn:
            self._put(_ERASE)
            self._drawn = False

    def interject(self, column: int, text: str) -> None:
        """Show `text` permanently, on a line of its own."""
        self.erase()
        begin = "\n" if column else ""
        self._put(f"{begin}{_DIM}{text}{_PLAIN}\n")

    def _put(self, text: str) -> None:
        try:
            os.write(self._console.file.fileno(), text.encode(self._console.encoding, "replace"))
        except OSError:  # the terminal is gone: nothing can be shown, and nothing is lost
            self.possible = False


def column_after(text: str, column: int, width: int) -> int:
    """The cursor's column after `text` that began in `column`, on a terminal `width` cells wide."""
    _, new_line, last = text.rpartition("\n")
    if new_line:
        column = 0
    for character in last:
        if character == "\t":
            column = min(column // 8 * 8 + 8, width - 1)
            continue
        cells = cell_len(character)
        column = cells if column + cells > width else column + cells
    return column
