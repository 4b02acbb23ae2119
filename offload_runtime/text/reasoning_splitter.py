"""Splits the text of a reply, given in pieces, into thoughts and answer."""

from collections.abc import Collection

from offload_runtime.text.detokenize import overlap
from offload_runtime.text.reasoning_marks import (
    FAMILIES,
    HARMONY,
    HARMONY_BEGINS,
    RECIPIENT,
    ReplyPart,
    begun_by,
    closing,
    named_state,
)
from offload_runtime.text.tools.framed_bodies import harmony_call
from offload_runtime.text.tools.tool_call import ToolCall

Piece = tuple[str, str]
"""(thoughts, answer)"""


class Splitter:
    """Separates thoughts from the answer in a text given in pieces; where pieces begin and end makes no difference.

    Marks and the space around thoughts are dropped. A text without marks is the answer, unchanged.

    prompt: the end of the text before, with special tokens. tokens: marks that are special tokens of the model; they
    come through `push_mark`, and the same characters as text are not marks. tags: tags that may enclose an answer after
    thoughts; they are dropped too. calls: where harmony's calls of tools are added; None takes them for thoughts.
    """

    def __init__(
        self,
        prompt: str = "",
        tokens: Collection[str] = (),
        tags: Collection[str] = (),
        calls: list[ToolCall] | None = None,
    ):
        self._calls = calls
        self._family, self._state = begun_by(prompt)
        self._state = self._known(self._state)
        self._tokens = frozenset(tokens)
        self._tags = frozenset(tags)
        self._tag_end = ""  # what ends an answer that began with a tag
        self._at_start = self._family is None
        self._in_header = prompt.rstrip().endswith(HARMONY_BEGINS)
        self._held = ""  # possibly the beginning of a mark
        self._header = prompt if self._state is ReplyPart.CALL else ""
        self._call = ""  # the message that is a call, so far
        self._opening = ""  # start of the section after a mark: so far only space and perhaps a label
        self._opens = self._state is ReplyPart.THOUGHT
        self._space = ""  # at the end of a thought: dropped if nothing follows
        self._written: set[ReplyPart] = set()

    def push(self, text: str) -> Piece:
        """Add text; return what it completes."""
        self._held += text
        pieces: list[Piece] = []
        if self._at_start and not self._has_started():
            return "", ""
        while found := self._found():
            position, mark = min(found)
            before, self._held = self._held[:position], self._held[position + len(mark) :]
            pieces += [self._section(before), self._follow(mark)]
        keep = max((overlap(self._held, mark) for mark in self._awaited()), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return _joined([*pieces, self._section(ready)])

    def push_mark(self, mark: str) -> Piece:
        """Add a mark that is a token; return the text it completes."""
        owners = [family for family in (self._family, *FAMILIES) if family and mark in family.marks]
        owner = owners[0]
        begins = owner.anywhere or (self._at_start and mark in owner.openers)
        if not begins and (owner is not self._family or owner.marks[mark] is ReplyPart.THOUGHT):
            return "", ""
        held, self._held = self._held, ""
        before = self._section(held if not self._at_start else held.lstrip())
        self._family, self._at_start = owner, False
        return _joined([before, self._follow(mark)])

    def finish(self) -> Piece:
        """What is still held back at the end."""
        held, self._held, self._at_start = self._held, "", False
        return _joined([self._section(held), self._close()])

    def _found(self) -> list[tuple[int, str]]:
        found = [(self._held.index(mark), mark) for mark in self._awaited() if mark in self._held]
        return [(at, mark) for at, mark in found if mark not in self._first() or not self._held[:at].strip()]

    def _awaited(self) -> list[str]:
        marks = self._family.awaited(self._state) if self._family else ()
        ends = (self._tag_end,) if self._tag_end else ()
        return [mark for mark in (*marks, *ends, *self._first()) if mark not in self._tokens]

    def _first(self) -> Collection[str]:
        """What is dropped at the start of a section: a mark that the prompt already ends with, or an answer tag."""
        if not self._family or not self._opens or self._family.anywhere or self._opening.strip():
            return ()
        if self._state is ReplyPart.THOUGHT:
            return self._family.openers
        return self._tags if not self._tag_end else ()

    def _has_started(self) -> bool:
        """Whether the held text decides if the reply begins with a mark; such a mark is followed."""
        text = self._held.lstrip()
        if self._in_header and text.startswith(RECIPIENT):
            self._family, self._state, self._at_start = HARMONY, ReplyPart.HEADER, False
            self._held = f" {text}"
            return True
        begins = [(mark, family) for family in FAMILIES for mark in family.begins if mark not in self._tokens]
        for mark, family in begins:
            if text.startswith(mark):
                self._held, self._family, self._at_start = text[len(mark) :], family, False
                self._follow(mark)
                return True
        awaited = [*(mark for mark, _ in begins), *([RECIPIENT] if self._in_header else [])]
        self._at_start = any(mark.startswith(text) for mark in awaited)
        return not self._at_start

    def _follow(self, mark: str) -> Piece:
        """End the section before a mark and begin the one after it."""
        assert self._family is not None
        if mark in (self._tag_end, *self._first()):
            self._tag_end = closing(mark) if mark in self._tags else ""
            self._opens, self._opening, self._space = True, "", ""
            return "", ""
        follows = self._family.marks[mark]
        if follows is ReplyPart.NAMED:
            follows = self._known(named_state(self._header))
        if follows is self._state:
            self._header += mark if follows is ReplyPart.HEADER else ""
            return "", ""
        rest = self._close()
        self._header = mark if follows is ReplyPart.HEADER else self._header
        self._state, self._opens = follows, True
        return rest

    def _known(self, state: ReplyPart) -> ReplyPart:
        return ReplyPart.THOUGHT if state is ReplyPart.CALL and self._calls is None else state

    def _section(self, text: str) -> Piece:
        """The part of a text between marks that can be shown now."""
        if self._state is ReplyPart.HEADER:
            self._header += text
            return "", ""
        if self._state is ReplyPart.CALL:
            self._call += text
            return "", ""
        if self._opens:
            text = self._behind_opening(text)
            if not text:
                return "", ""
            text = "\n\n" * (self._state in self._written) + text
            self._opens, self._opening = False, ""
        if text:
            self._written.add(self._state)
        if self._state is ReplyPart.ANSWER and not self._tag_end:
            return "", text
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return ("", shown) if self._state is ReplyPart.ANSWER else (shown, "")

    def _behind_opening(self, text: str) -> str:
        """The text after a section's opening space and label; nothing until these are complete."""
        self._opening += text
        label = self._family.label if self._family and self._state is ReplyPart.THOUGHT else ""
        opening = self._opening.lstrip()
        if label and label.startswith(opening):
            return ""
        return opening.removeprefix(label).lstrip()

    def _close(self) -> Piece:
        """End a section: an opening that is not a label is text."""
        if self._state is ReplyPart.CALL:
            return "", self._end_call()
        opening, self._opening, self._space = self._opening.strip(), "", ""
        label = self._family.label.strip() if self._family else ""
        is_text = self._opens and self._state is ReplyPart.THOUGHT and opening != label
        self._opens = False
        return (opening, "") if is_text else ("", "")

    def _end_call(self) -> str:
        """Add the call that has been written; one that cannot be read is text."""
        assert self._calls is not None
        body, self._call = self._call, ""
        try:
            self._calls.append(harmony_call(self._header, body))
            return ""
        except ValueError:
            text = "\n\n" * (ReplyPart.ANSWER in self._written) + body
            self._written |= {ReplyPart.ANSWER} if body else set()
            return text


def _joined(pieces: list[Piece]) -> Piece:
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)
