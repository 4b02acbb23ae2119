"""Text shown to the user: outside strings (names, file contents, template output) are escaped and shortened."""

from __future__ import annotations

import re
from itertools import accumulate

_NOT_PLAIN = re.compile(r"[^\n\t -~]")
_WORD = re.compile(r"\S{301,}")
ROW = 80  # columns
_MOST_ROWS, _HEAD_ROWS = 22, 12  # of a terminal's 24; the end of a message says what to do, so both ends are kept
_LINE = 8 * ROW


def displayable(text: str) -> str:
    r"""`text` with every invisible or terminal-controlling character escaped: "\x1b", "\u202e", "\ud800".

    These are Unicode's control, format, surrogate, private, unassigned and separator characters, which include bidi
    marks and zero-width characters. Line breaks, tabs and existing escapes stay.
    """
    return _NOT_PLAIN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def message_text(text: str) -> str:
    """`displayable`, cut to one screen of 24 rows: the middle of longer text is left out."""
    text = _WORD.sub(lambda match: _shortened(match[0], 300), displayable(text))
    lines = [_shortened(line, _LINE) for line in text.split("\n")]
    rows = [max(1, -(-len(line) // ROW)) for line in lines]
    if sum(rows) <= _MOST_ROWS:
        return "\n".join(lines)
    head = sum(count <= _HEAD_ROWS for count in accumulate(rows))
    tail = sum(count < _MOST_ROWS - _HEAD_ROWS for count in accumulate(reversed(rows)))
    return "\n".join([*lines[:head], "…", *lines[len(lines) - tail :]])


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quoted(value: object, most: int = 60) -> str:
    """A name or value from a file, for the middle of a sentence: one line of at most `most` characters."""
    try:
        text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return _shortened(text, most)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"
