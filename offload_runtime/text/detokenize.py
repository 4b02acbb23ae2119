"""From token ids to text, piece by piece; never cuts a character made of several tokens, or a stop string."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from offload_runtime.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # a decoder writes it for bytes that are not, or not yet, a character


def check_whole_characters(text: str) -> None:
    """Raise PromptError for a lone surrogate, which JSON or system calls may bring and no tokens can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt holds half a character, a lone surrogate {text[error.start]!a} at position {error.start}, "
            "which no tokenizer takes"
        ) from error


class IncrementalText:
    """Text of a growing list of token ids: what `push` and `finish` return, joined, is the tokenizer's decoding.

    Works for every tokenizer of transformers, since it only calls `decode`, on a window of the last tokens, and cuts
    off the text returned before. A decoder that drops the first space (SentencePiece) thus drops it once. Invalid bytes
    become replacement characters once a character or the end follows them; returned text is never taken back. Byte
    tokens (<0x0A>) are decoded together with their neighbours, and one that is not part of a character turns them all
    into replacement characters, so they wait until another token follows. With `context`, the ids before the list, the
    text is what follows them: a first space stays.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", context: Sequence[int] = (), skip_special_tokens: bool = True
    ):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._byte_tokens = _byte_tokens(tokenizer)
        self._skipped = _special_tokens(tokenizer) if skip_special_tokens and self._byte_tokens else frozenset()
        self._window = list(context[-32:])  # enough to hold a visible token among special ones
        self._shown = self._decode(self._window)
        self._since_whole: list[int] = []  # tokens since the text last ended with a whole character

    @property
    def held_bytes(self) -> str:
        """The text of the byte tokens held back, if no more of them follow."""
        return _added(self._shown, self._decode(self._window)) if self._ends_in_bytes() else ""

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens; return the text they complete, possibly empty."""
        block = list(ids)
        self._window += block
        self._since_whole += block
        if self._ends_in_bytes():
            return ""
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        if whole != text and not whole.startswith(self._shown):
            return ""
        new = _added(self._shown, whole)
        self._shown = whole
        if new and whole == text:
            self._shorten_window()
        return new

    def finish(self) -> str:
        """The text still held back; incomplete characters become replacement characters."""
        text = self._decode(self._window)
        rest, self._shown = _added(self._shown, text), text
        return rest

    def _ends_in_bytes(self) -> bool:
        if not self._byte_tokens:
            return False
        last = next((token for token in reversed(self._window) if token not in self._skipped), None)
        return last in self._byte_tokens

    def _shorten_window(self) -> None:
        """Keep only the tokens of the last whole characters, so that the cost of a push does not grow with the text."""
        shown = self._decode(self._since_whole)
        if shown:  # special tokens alone would not tell the decoder that the next token is not the first
            self._window, self._shown, self._since_whole = self._since_whole, shown, []

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _byte_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens that stand for one byte each; a byte-level vocabulary has none."""
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    ids = (tokenizer.convert_tokens_to_ids(name) for name in names)
    return frozenset(token for token in ids if type(token) is int and tokenizer.convert_ids_to_tokens(token) in names)


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids).union(added)


def _added(before: str, text: str) -> str:
    """What `text` adds to `before`, whose end may be an incomplete character that `text` completes."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text))
    return text[len(before) if text.startswith(before) else sum(1 for _ in same) :]


class StopStrings:
    """Cuts a text, given in pieces, before the first stop string completed in it; holds back what may become one.

    Where pieces begin and end makes no difference. Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        if not all(self._stops):
            raise ValueError("a stop string must not be empty")
        self._held = ""
        self.found: str | None = None

    def __bool__(self) -> bool:
        return bool(self._stops)

    def push(self, text: str) -> str:
        """Add text; return what is certainly before any stop string; nothing once `found` is set."""
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
        """The text held back at the end: the beginning of a stop string that was never completed."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
