"""Where the answer of a reply begins, for models that think first: told by the tokens that mark thoughts.

A mark that the vocabulary has no token of its own for is not recognised. Such a model answers at once; where the prompt
has already opened a thought, that is refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from offload_runtime.errors import UsageError
from offload_runtime.text.reasoning_marks import FAMILIES, MarkFamily, ReplyPart, begun_by, named_state
from offload_runtime.text.reply_sections import PROMPT_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReplyPosition:
    """A place in a reply. state: what the token there is part of. family: whose marks count.

    header: the latest header of a message, as far as it is written. first: whether the place is the first of the reply,
    where a thought may begin.
    """

    state: ReplyPart
    family: MarkFamily | None = None
    header: tuple[int, ...] = ()
    first: bool = False

    @property
    def answers(self) -> bool:
        """Whether the answer has begun, or does with the next token unless that opens a thought."""
        return self.state is ReplyPart.ANSWER


ANSWER = ReplyPosition(ReplyPart.ANSWER)


class Thoughts:
    """The marks of thoughts in one tokenizer's vocabulary."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._marks = _mark_tokens(tokenizer)

    @cached_property
    def openers(self) -> frozenset[int]:
        """The tokens that a reply may begin a thought with."""
        present = set(self._marks.values())
        families = [family for family in FAMILIES if any(mark in present for mark in _closing(family))]
        begins = {mark for family in families for mark in family.openers}
        return frozenset(token for token, mark in self._marks.items() if mark in begins)

    def begin(self, prompt: Sequence[int]) -> ReplyPosition:
        """The beginning of a reply. Raises UsageError if the prompt opens a thought whose end no token marks."""
        end = self._tokenizer.decode(list(prompt[-PROMPT_END:]), skip_special_tokens=False) if prompt else ""
        family, state = begun_by(str(end))
        if family is None:
            return ReplyPosition(ReplyPart.ANSWER, first=True)
        if state is ReplyPart.THOUGHT and not any(mark in self._marks.values() for mark in _closing(family)):
            raise UsageError(
                "response_format: this model's thoughts end with text for which it has no token of its own, so it "
                "cannot be told where the answer begins.\n  Turn thinking off (--thinking off, or template_arguments)"
            )
        return ReplyPosition(state, family)

    def after(self, place: ReplyPosition, token: int) -> ReplyPosition:
        """The place after `token`, which is written at `place`."""
        mark = self._marks.get(token)
        if place.answers and not (place.first and token in self.openers):
            return ANSWER
        family = place.family or next(family for family in FAMILIES if mark in family.openers)
        if mark is None or not _counts(mark, family, place):
            return replace(place, header=(*place.header, token)) if place.state is ReplyPart.HEADER else place
        follows = family.marks[mark]
        if follows is ReplyPart.NAMED:
            header = self._tokenizer.decode(list(place.header), skip_special_tokens=False)
            follows = named_state(str(header))
        if follows is ReplyPart.HEADER:
            return ReplyPosition(
                follows, family, (*place.header, token) if place.state is ReplyPart.HEADER else (token,)
            )
        return ReplyPosition(follows, family, place.header)


def _counts(mark: str, family: MarkFamily, place: ReplyPosition) -> bool:
    return mark in family.marks if place.first or family.anywhere else mark in family.ends


def _closing(family: MarkFamily) -> Collection[str]:
    """The marks that an answer can begin after."""
    closes = (ReplyPart.ANSWER, ReplyPart.NAMED)
    return [mark for mark, follows in family.marks.items() if follows in closes] if family.anywhere else family.ends


def _mark_tokens(tokenizer: "PreTrainedTokenizerBase") -> Mapping[int, str]:
    """The marks that are single tokens, by id."""

    found = {mark: single_token(tokenizer, mark) for family in FAMILIES for mark in family.marks}
    return {token: mark for mark, token in found.items() if token is not None}


def single_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The token that is exactly `text`, if there is one."""
    token = tokenizer.convert_tokens_to_ids(text)
    return token if type(token) is int and tokenizer.convert_ids_to_tokens(token) == text else None
