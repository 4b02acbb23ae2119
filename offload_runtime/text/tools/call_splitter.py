"""Splits an answer, given in pieces, into text and calls of tools."""

from collections.abc import Collection

from offload_runtime.text.detokenize import overlap
from offload_runtime.text.tools.call_formats import CallFormat
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

_BARE_BEGINNINGS = ('{"name":', '{"type":"function",', '{"function":', '{"parameters":')


class CallSplitter:
    """Separates calls from the text around them; where pieces begin and end makes no difference.

    Space around calls is dropped. What begins like a call but cannot be read as one is text, with its marks.

    tokens: marks that are special tokens of the model; they come through `push_mark`, and the same characters as text
    are not marks. calls: those found so far.
    """

    def __init__(self, form: CallFormat, tools: Tools, tokens: Collection[str] = ()):
        self._form, self._tools = form, tools
        self._begin, end = (mark if mark not in tokens else "" for mark in (form.begin, form.end))
        self._until = end if form.end else self._begin
        self._held = ""  # outside a call: what may become a mark; inside one: its text so far
        self._searched = 0  # how much of a call's text has no end in it
        self._at_start = form.bare
        self._space = ""  # at the end of the text: dropped if a call follows
        self._written = self._after_call = False
        self.is_open = False
        self.calls: list[ToolCall] = []

    @property
    def has_tokens(self) -> bool:
        """Whether calls begin with a token, not with text."""
        return not self._begin and bool(self._form.begin)

    def begins(self, mark: str) -> bool:
        """Whether a mark that is a token begins a call now."""
        return mark == self._form.begin and not self.is_open

    def push(self, text: str) -> str:
        """Add text; return the text outside calls that it completes."""
        self._held += text
        self._at_start = self._at_start and self._may_be_bare()
        return "" if self._at_start else self._split()

    def push_mark(self, mark: str) -> str:
        """Add a mark that is a token; return the text outside calls that it completes."""
        if mark in self._form.inner and self.is_open:
            self._held += mark
        if mark not in (self._form.begin, self._form.end):
            return ""
        known, ends = len(self.calls), self.is_open and mark == self._form.end
        before = self._flush(ends)
        if ends and len(self.calls) == known:
            before += self._text(mark)
        self.is_open, self._at_start = mark == self._form.begin, False
        return before

    def finish(self) -> str:
        """The text that is still held back at the end."""
        if self._at_start and self._read(self._held, known_only=True):
            self._held = ""
        rest = self._flush()
        return rest if self._after_call else rest + self._space

    def _may_be_bare(self) -> bool:
        """Whether the reply so far may be a call without a mark."""
        start = "".join(self._held[:200].split())
        return any(start.startswith(begin) or begin.startswith(start) for begin in _BARE_BEGINNINGS)

    def _split(self) -> str:
        """Read what has come as far as it is certain; return the text in it."""
        shown = ""
        while True:
            if self.is_open:
                end = self._find_end()
                if end is None:
                    return shown
                shown += self._close(*end)
                continue
            before, found, after = self._held.partition(self._begin) if self._begin else (self._held, "", "")
            if not found:
                keep = overlap(before, self._begin)
                self._held = before[len(before) - keep :]
                return shown + self._text(before[: len(before) - keep])
            shown += self._text(before)
            self._held, self.is_open = after, True

    def _find_end(self) -> tuple[str, str] | None:
        """The text of the open call and what follows it, once its end has come."""
        while self._until and (at := self._held.find(self._until, self._searched)) >= 0:
            body, rest = self._held[:at], self._held[at:]
            if not self._form.is_inside(body):
                return body, rest.removeprefix(self._form.end) if self._form.end else rest
            self._searched = at + 1
        self._searched = max(self._searched, len(self._held) - len(self._until) + 1)
        return None

    def _close(self, body: str, rest: str, ends: bool = True) -> str:
        """End the open call. Where it cannot be read, its mark is text, and what follows may hold another call."""
        self.is_open, self._searched = False, 0
        if (self._form.needs_end and not ends) or not self._read(body):
            return self._text(self._form.begin)
        self._held = rest
        return ""

    def _flush(self, ends: bool = False) -> str:
        """The text of what is held, of which no more will come. ends: the open call's end mark has come."""
        shown = self._split()
        while self.is_open:
            shown += self._close(self._held, "", ends) + self._split()
        rest, self._held = self._held, ""
        return shown + self._text(rest)

    def _read(self, body: str, known_only: bool = False) -> bool:
        """Add the calls of a text; False for one that cannot be read."""
        try:
            calls = self._form.read(body, self._tools)
        except ValueError:
            return False
        if known_only and not {call.name for call in calls} <= self._tools.names:
            return False
        self.calls += calls
        self._after_call = True
        return True

    def _text(self, text: str) -> str:
        """The part of a text outside calls that can be shown now."""
        text = self._space + text
        shown = (text.lstrip() if self._after_call else text).rstrip()
        self._space = text[len(text.rstrip()) :]
        if shown and self._after_call:
            shown = "\n\n" * self._written + shown
        self._written, self._after_call = self._written or bool(shown), self._after_call and not shown
        return shown
