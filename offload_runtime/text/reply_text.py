"""The text of a reply as its tokens come: thoughts, answer and calls of tools are separate.

The answer ends before a stop string.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from offload_runtime.text.detokenize import IncrementalText, StopStrings
from offload_runtime.text.reasoning_splitter import Piece
from offload_runtime.text.reply_sections import ReplySections
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReplyText:
    """Thoughts and answer of a growing list of token ids that follow `prompt`.

    split: separate thoughts and calls of `tools` from the answer; otherwise everything is answer. Stop strings count in
    the answer only. Raises UsageError for tools of a model whose calls cannot be read.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: Sequence[int] = (),
        stops: StopStrings | None = None,
        split: bool = True,
        tools: Tools | None = None,
    ):
        self._text = IncrementalText(tokenizer, prompt)
        self._stops = StopStrings(()) if stops is None else stops
        self._sections = ReplySections(tokenizer, prompt, tools or Tools()) if split else None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; no more text follows then."""
        return self._stops.found is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The calls of tools completed so far. They are not part of the answer."""
        return self._sections.calls if self._sections else ()

    def push(self, token: int, ends: bool = False) -> Piece:
        """Add a token; return the thoughts and answer it completes. A token that ends the reply adds no text."""
        text = "" if ends else self._text.push([token])
        thought, answer = self._sections.push(text) if self._sections else ("", text)
        if self._sections:
            more = self._sections.push_token(token)
            thought, answer = thought + more[0], answer + more[1]
        answer = self._stops.push(answer)
        more = self._up_to_stop_in_bytes()
        return thought + more[0], answer + more[1]

    def _up_to_stop_in_bytes(self) -> Piece:
        """End the answer at once if the byte tokens held back, such as line breaks, complete a stop string."""
        held = self._text.held_bytes if self._stops and not self.is_stopped else ""
        if not held:
            return "", ""
        sections, stops = deepcopy((self._sections, self._stops))
        thought, answer = sections.push(held) if sections else ("", held)
        answer = stops.push(answer)
        if stops.found is None:
            return "", ""
        self._sections, self._stops = sections, stops
        return thought, answer

    def finish(self) -> Piece:
        """What is still held back at the end."""
        text = self._text.finish()
        if not self._sections:
            return "", self._stops.push(text) + self._stops.finish()
        thought, answer = self._sections.push(text)
        last = self._sections.finish()
        return thought + last[0], self._stops.push(answer + last[1]) + self._stops.finish()


def split_reply(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Iterable[int]) -> Piece:
    """The thoughts and the answer of a whole reply."""
    text = ReplyText(tokenizer, prompt)
    pieces = [*(text.push(token) for token in ids), text.finish()]
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)
