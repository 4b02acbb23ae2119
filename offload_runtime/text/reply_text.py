"""The text of a reply as its tokens come, thoughts and answer separate; the answer ends before a stop string."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from offload_runtime.text.detokenize import IncrementalText, StopStrings
from offload_runtime.text.reasoning_marks import FAMILIES, WITHIN_REPLY, answer_tags
from offload_runtime.text.reasoning_splitter import Piece, Splitter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT_END = 64  # tokens that hold what a template writes of the reply, letter by letter if need be


class ReplyText:
    """Thoughts and answer of a growing list of token ids that follow `prompt`.

    split: separate thoughts from the answer; otherwise everything is answer. Stop strings count in the answer only.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: Sequence[int] = (),
        stops: StopStrings | None = None,
        split: bool = True,
    ):
        self._text = IncrementalText(tokenizer, prompt)
        self._stops = StopStrings(()) if stops is None else stops
        self._marks = special_marks(tokenizer) if split else {}
        end = tokenizer.decode(list(prompt[-_PROMPT_END:]), skip_special_tokens=False) if split and prompt else ""
        tags = answer_tags(str(tokenizer.chat_template or ""))
        self._splitter = Splitter(str(end), self._marks.values(), tags) if split else None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; no more text follows then."""
        return self._stops.found is not None

    def push(self, token: int, ends: bool = False) -> Piece:
        """Add a token; return the thoughts and answer it completes. A token that ends the reply adds no text."""
        text = "" if ends else self._text.push([token])
        thought, answer = self._splitter.push(text) if self._splitter else ("", text)
        if self._splitter and token in self._marks:
            more = self._splitter.push_mark(self._marks[token])
            thought, answer = thought + more[0], answer + more[1]
        answer = self._stops.push(answer)
        more = self._up_to_stop_in_bytes()
        return thought + more[0], answer + more[1]

    def _up_to_stop_in_bytes(self) -> Piece:
        """End the answer at once if the byte tokens held back, such as line breaks, complete a stop string."""
        held = self._text.held_bytes if self._stops and not self.is_stopped else ""
        if not held:
            return "", ""
        splitter, stops = deepcopy((self._splitter, self._stops))
        thought, answer = splitter.push(held) if splitter else ("", held)
        answer = stops.push(answer)
        if stops.found is None:
            return "", ""
        self._splitter, self._stops = splitter, stops
        return thought, answer

    def finish(self) -> Piece:
        """What is still held back at the end."""
        text = self._text.finish()
        if not self._splitter:
            return "", self._stops.push(text) + self._stops.finish()
        thought, answer = self._splitter.push(text)
        last = self._splitter.finish()
        return thought + last[0], self._stops.push(answer + last[1]) + self._stops.finish()


def special_marks(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The marks of thoughts that are special tokens, which decoding omits, by id."""
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = (mark for family in FAMILIES if family.opener in special for mark in family.marks)
    return {special[mark]: mark for mark in marks if mark in special}


def inner_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The marks that do not end a reply, although a template may put one after a reply without thoughts."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    families = (family for family in FAMILIES if all(mark in added for mark in family.marks))
    return frozenset(added[mark] for family in families for mark in family.marks if mark in WITHIN_REPLY)


def split_reply(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Iterable[int]) -> Piece:
    """The thoughts and the answer of a whole reply."""
    text = ReplyText(tokenizer, prompt)
    pieces = [*(text.push(token) for token in ids), text.finish()]
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)
