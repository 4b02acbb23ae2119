"""The sections of a reply, from its text and its special tokens: thoughts, answer and calls of tools."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from offload_runtime.text.reasoning_marks import FAMILIES, WITHIN_REPLY, answer_tags
from offload_runtime.text.reasoning_splitter import Piece, Splitter
from offload_runtime.text.tools.call_formats import HARMONY_CALLS, call_format
from offload_runtime.text.tools.call_splitter import CallSplitter
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools, template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_END = 64  # tokens that hold what a template writes of the reply, letter by letter if need be


class ReplySections:
    """Thoughts and answer of a reply to `prompt`, given in pieces, and its calls of `tools`. Raises UsageError for
    tools of a model whose calls cannot be read.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], tools: Tools):
        self._marks = special_marks(tokenizer)
        end = tokenizer.decode(list(prompt[-PROMPT_END:]), skip_special_tokens=False) if prompt else ""
        template = template_for(tokenizer, tools)
        form = call_format(template) if tools else None
        self.calls: list[ToolCall] = []
        self._called, self._call_marks = None, {}
        if form and form is not HARMONY_CALLS:
            self._call_marks = special_tokens(tokenizer, form.marks)
            self._called = CallSplitter(form, tools, self._call_marks.values())
            self.calls = self._called.calls
        in_messages = self.calls if form is HARMONY_CALLS else None
        self._thinking = Splitter(str(end), self._marks.values(), answer_tags(template), in_messages)

    def push(self, text: str) -> Piece:
        """Add text; return the thoughts and answer it completes."""
        if self._called and self._called.is_open and self._called.has_tokens:
            return "", self._called.push(text)
        return self._without_calls(self._thinking.push(text))

    def push_token(self, token: int) -> Piece:
        """Add a token that decoding may omit; it counts if it is a mark."""
        if token in self._marks:
            return self._without_calls(self._thinking.push_mark(self._marks[token]))
        if self._called is None or token not in self._call_marks:
            return "", ""
        mark = self._call_marks[token]
        before = self._thinking.finish() if self._called.begins(mark) else ("", "")
        thought, answer = self._without_calls(before)
        return thought, answer + self._called.push_mark(mark)

    def finish(self) -> Piece:
        """What is still held back at the end."""
        thought, answer = self._without_calls(self._thinking.finish())
        return thought, answer + (self._called.finish() if self._called else "")

    def _without_calls(self, piece: Piece) -> Piece:
        thought, answer = piece
        return thought, self._called.push(answer) if self._called else answer


def special_tokens(tokenizer: "PreTrainedTokenizerBase", marks: Iterable[str]) -> dict[int, str]:
    """Those of the marks that are special tokens, which decoding omits, by id."""
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {special[mark]: mark for mark in marks if mark in special}


def special_marks(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The marks of thoughts that are special tokens, by id."""
    openers = special_tokens(tokenizer, (family.opener for family in FAMILIES)).values()
    return special_tokens(tokenizer, (mark for one in FAMILIES if one.opener in openers for mark in one.marks))


def inner_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The marks that do not end a reply, although a template may put one after a reply without thoughts."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    families = (family for family in FAMILIES if all(mark in added for mark in family.marks))
    return frozenset(added[mark] for family in families for mark in family.marks if mark in WITHIN_REPLY)
