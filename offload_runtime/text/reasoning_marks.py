"""The marks that model families put around thoughts: text, or special tokens that decoding omits."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class ReplyPart(Enum):
    """What the text after a mark is. NAMED: an answer, a thought or a call, as the header before the mark says."""

    ANSWER = auto()
    THOUGHT = auto()
    HEADER = auto()
    NAMED = auto()
    CALL = auto()


@dataclass(frozen=True)
class MarkFamily:
    """The marks of one family, and what follows each.

    label: a word that may follow the mark of a thought. anywhere: every mark counts wherever it occurs. Otherwise only
    the start of a reply can be a thought, one of `ends` ends it, and later marks are part of the answer.
    """

    marks: Mapping[str, ReplyPart]
    ends: tuple[str, ...] = ()
    label: str = ""
    anywhere: bool = False

    @property
    def opener(self) -> str:
        """The mark that every vocabulary of this family has."""
        return next(iter(self.marks))

    @property
    def openers(self) -> tuple[str, ...]:
        """The marks that thoughts begin with; only the first where headers say what follows."""
        return tuple(mark for mark, follows in self.marks.items() if follows is ReplyPart.THOUGHT) or (self.opener,)

    @property
    def begins(self) -> tuple[str, ...]:
        """The marks, as text, that a reply can begin with."""
        return self.openers + (self._around_answer if self.anywhere else ())

    @property
    def _around_answer(self) -> tuple[str, ...]:
        answers = (mark for mark, follows in self.marks.items() if follows is ReplyPart.ANSWER)
        return tuple(mark for mark in answers if mark not in self.ends)

    def awaited(self, state: ReplyPart) -> tuple[str, ...]:
        """The marks that count after text of this kind."""
        if self.anywhere:
            return tuple(self.marks)
        return self.ends if state is ReplyPart.THOUGHT else self._around_answer


def _pair(begin: str, end: str, *around_answer: str, label: str = "", anywhere: bool = False) -> MarkFamily:
    return _family((begin,), (end,), *around_answer, label=label, anywhere=anywhere)


def _family(
    begins: tuple[str, ...], ends: tuple[str, ...], *around_answer: str, label: str = "", anywhere: bool = False
) -> MarkFamily:
    marks = dict.fromkeys(begins, ReplyPart.THOUGHT) | dict.fromkeys((*ends, *around_answer), ReplyPart.ANSWER)
    return MarkFamily(marks, ends, label, anywhere)


# Channels: https://cookbook.openai.com/articles/openai-harmony
HARMONY = MarkFamily(
    dict.fromkeys(("<|channel|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"), ReplyPart.HEADER)
    | {"<|message|>": ReplyPart.NAMED},
    anywhere=True,
)
# A prompt ends within a header, so that a reply may begin with the recipient of a call.
HARMONY_BEGINS, RECIPIENT = "<|start|>assistant", "to="
# Messages with headers too, but a mark of its own says what a message is.
SOLAR = MarkFamily(
    {
        "<|think|>": ReplyPart.THOUGHT,
        "<|content|>": ReplyPart.ANSWER,
        "<|begin|>": ReplyPart.HEADER,
        "<|end|>": ReplyPart.HEADER,
    },
    anywhere=True,
)
FAMILIES = (
    _pair("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, GLM 4.5, Kimi K2, MiniMax M2, Nemotron, Olmo 3, SmolLM 3, …
    _pair("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    HARMONY,  # gpt-oss
    SOLAR,  # Solar Open
    _pair("<|channel>", "<channel|>", label="thought\n", anywhere=True),  # Gemma 4
    _pair("<unused94>", "<unused95>", label="thought\n"),  # MedGemma
    _pair(
        *("<|START_THINKING|>", "<|END_THINKING|>"),
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        anywhere=True,
    ),  # Command A, Command R7B
    _pair("<|inner_prefix|>", "<|inner_suffix|>", anywhere=True),  # Apertus
    _pair("<seed:think>", "</seed:think>"),  # Seed-OSS
    _pair("<thought>", "</thought>"),  # EXAONE Deep
    _pair("<longcat_think>", "</longcat_think>"),  # LongCat
    _pair("◁think▷", "◁/think▷"),  # Kimi-VL
    _pair("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"),  # OpenThinker
    _pair("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),  # Apriel
    _family(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
    ),  # Granite 3.2
    _pair("<reasoning>", "</reasoning>"),  # Reka Flash 3
    _pair("<thinking>", "</thinking>"),  # Reflection
    _pair("<Thought>", "</Thought>"),  # Marco-o1
)
# They begin and end a message; a reply has several.
WITHIN_REPLY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|begin|>", "<|think|>", "<|content|>")
# Tags around answers: Granite 3.3, ERNIE 4.5; Hunyuan, GLM 4.1V; Reflection; Marco-o1.
_ANSWER_TAGS = ("<response>", "<answer>", "<output>", "<Output>")


def named_state(header: str) -> ReplyPart:
    """What a harmony message is by its header; calls of anything but a caller's tools are not for the reader.

    The channel is the first word after its mark; a call's recipient may come before or after it.
    """
    channel = header.rpartition("<|channel|>")[2].split()[:1]
    if f" {RECIPIENT}functions." in header:
        return ReplyPart.CALL
    return ReplyPart.THOUGHT if channel == ["analysis"] or f" {RECIPIENT}" in header else ReplyPart.ANSWER


def closing(tag: str) -> str:
    """The closing tag."""
    return f"</{tag[1:]}"


def answer_tags(template: str) -> tuple[str, ...]:
    """The answer tags that a chat template mentions. Other models write them only when a user asks for it."""
    return tuple(tag for tag in _ANSWER_TAGS if tag in template and closing(tag) in template)


def begun_by(prompt: str) -> tuple[MarkFamily | None, ReplyPart]:
    """The family whose mark the prompt ends with, if the template writes one, and what the reply begins as."""
    end = prompt.rstrip()
    for family in FAMILIES:
        for mark, state in family.marks.items():
            if state is ReplyPart.THOUGHT and end.endswith((mark, mark + family.label.rstrip())):
                return family, state
    head, _, header = end.removesuffix("<|message|>").rpartition("<|channel|>")
    if end.endswith("<|message|>") and head:
        return HARMONY, named_state(header)
    return None, ReplyPart.ANSWER
