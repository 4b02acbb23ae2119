"""From token ids to text, piece by piece: characters made of several tokens, and stop strings, are never cut."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from offload_runtime.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no character, or not yet one


def check_whole_characters(text: str) -> None:
    """Raise PromptError for a text that holds half a character, as JSON and system calls may bring: no tokens can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt holds half a character, a lone surrogate {text[error.start]!a} at position {error.start}, "
            "which no tokenizer takes"
        ) from error


class IncrementalText:
    """Text of a growing list of token ids: all that `push` returns, with `finish`, is the tokenizer's decoding of it.

    Works for every tokenizer of transformers, since it only calls `decode`: on a window of the last tokens, of which
    the text already handed out is cut off. A decoder that drops the first space (sentencepiece) so drops it once.
    Bytes that are no character come out as replacement characters once a character or the end follows them; nothing
    handed out is taken back.
    With `context`, the ids that went before, the text is what follows them: a first space stays.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", context: Sequence[int] = (), skip_special_tokens: bool = True
    ):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window = list(context[-32:])  # enough to hold a visible token among special ones
        self._shown = self._decode(self._window)
        self._since_whole: list[int] = []  # tokens since the text last ended with a whole character

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens; return the text they complete, which may be empty."""
        block = list(ids)
        self._window += block
        self._since_whole += block
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        if not whole.startswith(self._shown):
            if whole != text:
                return ""  # byte tokens: an unfinished character spoils the ones before it until it is whole
            whole = self._shown + text[len(self._shown) :]
        new = whole[len(self._shown) :]
        self._shown = whole
        if new and whole == text:
            self._shorten_window()
        return new

    def finish(self) -> str:
        """The text still held back: a last character of which bytes are missing, as replacement characters."""
        rest = self._decode(self._window)[len(self._shown) :]
        self._shown += rest
        return rest

    def _shorten_window(self) -> None:
        """Keep the tokens of the last whole characters, so that a push costs the same however long the text is."""
        shown = self._decode(self._since_whole)
        if shown:  # special tokens alone would not tell the decoder that the next token is not the first
            self._window, self._shown, self._since_whole = self._since_whole, shown, []

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class StopStrings:
    """Cuts a text, given in pieces, before the first stop string that completes in it, and withholds what may be one.

    Where pieces begin and end makes no difference. Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        if not all(self._stops):
            raise ValueError("a stop string must not be empty")
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; return what certainly comes before any stop string. After `found` is set, nothing more comes."""
        if self.found is not None:
            return ""
        held = self._held + text
        ends = [(held.index(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return held[: end - len(self.found)]
        keep = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The withheld text, when no more comes: it was the beginning of a stop string and not one."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string may begin with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
