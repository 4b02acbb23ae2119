"""A conversation as messages and as the token ids that the model has seen: past turns are never encoded again.

The KV cache belongs to exact token ids, and encoding a reply's text again may give other ids for the same text. So ids
are kept in stretches, each with its text, and only text that no kept stretch covers is encoded.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.detokenize import IncrementalText, check_whole_characters
from offload_runtime.text.prompt import turn_end_tokens
from offload_runtime.text.reply_text import split_reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # "role": "system" | "user" | "assistant"; "content"; in some replies "reasoning_content"
QUESTION: Message = {"role": "user", "content": "?"}  # for trying out templates


@dataclass(frozen=True)
class Stretch:
    """A stretch of a rendered conversation and the token ids that stand for it."""

    text: str
    ids: tuple[int, ...]


Snapshot = tuple[list[Message], list[Stretch]]


class Conversation:
    """Messages, turned into prompts by the tokenizer's chat template; `raw` joins them as plain text instead.

    Raises UsageError if there is no chat template. Every method that renders raises it if the template refuses the
    messages, and then leaves the conversation as it was.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        system: str | None = None,
        raw: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ):
        self.raw = raw
        self.template_arguments = dict(template_arguments or {})
        self.messages: list[Message] = []
        self.stretches: list[Stretch] = []
        self.tokenizer = tokenizer
        self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end a reply besides the model's own: what the chat template puts after one."""
        return frozenset() if self.raw else turn_end_tokens(self.tokenizer, self.template_arguments, self.messages)

    @property
    def token_count(self) -> int:
        """Number of token ids known so far."""
        return sum(len(stretch.ids) for stretch in self.stretches)

    def snapshot(self) -> Snapshot:
        """The state, for `restore`."""
        return list(self.messages), list(self.stretches)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to the state of the snapshot."""
        self.messages, self.stretches = list(snapshot[0]), list(snapshot[1])

    def add_user(self, text: str) -> list[int]:
        """Add a user message; return the ids of the whole prompt for the reply to it."""
        self.messages.append({"role": "user", "content": text})
        try:
            return self.prompt_ids()
        except OffloadError:
            self.messages.pop()
            raise

    def prompt_ids(self) -> list[int]:
        """The ids of the whole conversation up to where a reply begins."""
        rendering = self._render(self.messages)
        kept = self._matching_stretches(rendering)
        new_text = rendering[sum(len(stretch.text) for stretch in kept) :]
        if new_text:
            kept.append(Stretch(new_text, tuple(self._encode(new_text, kept))))
        self.stretches = kept
        return [token for stretch in kept for token in stretch.ids]

    def add_reply(self, ids: Sequence[int], text: str, end_ids: Collection[int]) -> None:
        """Add what the model wrote, complete or not: all its ids, the answer shown for them, the ids that end a reply.

        The message holds the answer, which a stop string may have cut, and separately the thoughts before it; the
        template decides how much of them the model sees again.
        """
        body = list(ids)
        end = [body.pop()] if body and body[-1] in end_ids else []
        written = self._text_of(body)
        self.messages.append(self._reply_message(written, text, body))
        self._append(written, body)
        if not self.raw:  # plain text goes on after a reply, without what ended it
            self._append(self._text_of(end), end)

    def _reply_message(self, written: str, shown: str, ids: list[int]) -> Message:
        if self.raw:
            return {"role": "assistant", "content": written}
        thoughts, answer = split_reply(self.tokenizer, self.stretches[-1].ids if self.stretches else (), ids)
        message = {"role": "assistant", "content": shown if answer.startswith(shown) else answer}
        return {**message, "reasoning_content": thoughts} if thoughts else message

    def drop_reply(self) -> bool:
        """Remove the model's last message, so that it can be written again; False if there is none."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return False
        self.messages.pop()
        return True

    def undo(self) -> bool:
        """Remove the user's last message and the reply to it; False if there is none."""
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not users:
            return False
        self._forget_from(users[-1])
        return True

    def drop_oldest(self) -> list[Message]:
        """Remove and return the user's oldest message and the reply to it; the newest message always stays.

        Ids of what stays are kept, except at the boundary.
        """
        first = 0 if self.system is None else 1
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if len(users) < 2:
            return []
        rest = self.messages[:first] + self.messages[users[1] :]
        before, after = (self._render(_awaiting_reply(messages)) for messages in (self.messages, rest))
        dropped, self.messages = self.messages[first : users[1]], rest
        self.stretches = self._matching_end(before, after)
        return dropped

    def clear(self) -> None:
        """Remove everything but the system message."""
        self._forget_from(1 if self.system is not None else 0)

    def set_system(self, text: str | None) -> None:
        """Set the system message, or remove it with None; the other messages stay."""
        if self.raw and text is not None:
            raise UsageError("without the chat template (--raw) there is no place for a system message")
        others = self.messages[0 if self.system is None else 1 :]
        messages = others if text is None else [{"role": "system", "content": text}, *others]
        self._render(_awaiting_reply(messages))
        self.messages = messages

    def _append(self, text: str, ids: Sequence[int]) -> None:
        if text:
            self.stretches.append(Stretch(text, tuple(ids)))

    def _forget_from(self, index: int) -> None:
        rest = self.messages[:index]
        rendering = self._render(_awaiting_reply(rest)) if len(rest) > 1 else ""
        self.messages, self.stretches = rest, self._matching_stretches(rendering)

    def _render(self, messages: list[Message]) -> str:
        """Render messages, the last of which is the user's, up to where the reply begins."""
        if self.raw:
            text = "".join(message["content"] for message in messages)
            check_whole_characters(text)
            return text
        return render_chat(self.tokenizer, messages, True, self.template_arguments)

    def _matching_stretches(self, rendering: str) -> list[Stretch]:
        """The known stretches that `rendering` begins with; a template may rewrite earlier turns."""
        kept: list[Stretch] = []
        position = 0
        for stretch in self.stretches:
            if not rendering.startswith(stretch.text, position):
                break
            kept.append(stretch)
            position += len(stretch.text)
        return kept

    def _matching_end(self, before: str, after: str) -> list[Stretch]:
        """Stretches of the rendering `after`; those of `before` are kept where both renderings end alike."""
        known = "".join(stretch.text for stretch in self.stretches)
        unknown = before[len(known) :] if before.startswith(known) else ""
        text = after.removesuffix(unknown)
        kept: list[Stretch] = []
        for stretch in reversed(self.stretches):
            if not text.endswith(stretch.text) or text == stretch.text:  # the start needs the tokens that begin a text
                break
            kept.insert(0, stretch)
            text = text[: len(text) - len(stretch.text)]
        return [Stretch(text, tuple(self._encode(text, []))), *kept] if text else kept

    def _encode(self, text: str, before: list[Stretch]) -> list[int]:
        """The ids of `text` where it follows `before`.

        SentencePiece tokenizers put a space before a text, so the last stretch is encoded along with it if its ids come
        out unchanged.
        """
        if not before:
            return self.tokenizer.encode(text, add_special_tokens=self.raw)
        last = before[-1]
        ids = self.tokenizer.encode(last.text + text, add_special_tokens=False)
        if tuple(ids[: len(last.ids)]) == last.ids:
            return ids[len(last.ids) :]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _text_of(self, ids: Sequence[int]) -> str:
        """The text of ids that follow the last stretch, with special tokens, as a template would write it."""
        context = self.stretches[-1].ids if self.stretches else ()
        text = IncrementalText(self.tokenizer, context, skip_special_tokens=False)
        return text.push(ids) + text.finish()


def _awaiting_reply(messages: list[Message]) -> list[Message]:
    """The messages, ending with one of the user's: some templates refuse a reply at the end."""
    asked = messages and messages[-1]["role"] == "user"
    return messages if asked else [*messages, QUESTION]
