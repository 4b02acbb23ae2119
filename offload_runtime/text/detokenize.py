"""From token ids to text, piece by piece: characters made of several tokens, and stop strings, are never cut."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
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
    handed out is taken back. Byte tokens (<0x0A>) are decoded together with all those beside them, and one that is no
    part of a character makes replacement characters of them all: they wait until another token follows.
    With `context`, the ids that went before, the text is what follows them: a first space stays.
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
        """The text that byte tokens stand for if no more of them follow."""
        return _added(self._shown, self._decode(self._window)) if self._ends_in_bytes() else ""

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens; return the text they complete, which may be empty."""
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
        """The text still held back: bytes that may be no whole character, with replacement characters if so."""
        text = self._decode(self._window)
        rest, self._shown = _added(self._shown, text), text
        return rest

    def _ends_in_bytes(self) -> bool:
        if not self._byte_tokens:
            return False
        last = next((token for token in reversed(self._window) if token not in self._skipped), None)
        return last in self._byte_tokens

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


def _byte_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens that stand for a byte each; a vocabulary spelled in bytes has none."""
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    ids = (tokenizer.convert_tokens_to_ids(name) for name in names)
    return frozenset(token for token in ids if type(token) is int and tokenizer.convert_ids_to_tokens(token) in names)


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids).union(added)


def _added(before: str, text: str) -> str:
    """What `text` has beyond `before`, the end of which it may complete: half a character of a prompt."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text))
    return text[len(before) if text.startswith(before) else sum(1 for _ in same) :]


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

    def __bool__(self) -> bool:
        return bool(self._stops)

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
