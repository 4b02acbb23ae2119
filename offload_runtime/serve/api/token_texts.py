"""The text and the bytes of single tokens, for lists of log-probabilities."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from offload_runtime.text.detokenize import REPLACEMENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sequoia_tree.verification.logprobs import TokenLogprobs

LEAST = -9999.0  # OpenAI's number for what JSON cannot hold: the log-probability of a token that is ruled out


@dataclass(frozen=True)
class TokenTexts:
    """Texts of the tokens of one tokenizer, which is asked for when first needed."""

    tokenizer: "Callable[[], PreTrainedTokenizerBase]"
    _known: dict[int, tuple[str, list[int] | None]] = field(default_factory=dict)

    def of(self, token: int) -> tuple[str, list[int] | None]:
        """A token's text, special ones included, and its bytes; None where they cannot be told."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> tuple[str, list[int] | None]:
        tokenizer = self.tokenizer()
        name = str(tokenizer.convert_ids_to_tokens(token))
        if len(name) == 6 and name.startswith("<0x"):
            return _escaped([int(name[3:5], 16)])
        before, both = (str(tokenizer.decode(ids)) for ids in (self._anchor, [*self._anchor, token]))
        text = both[len(before) :]  # a decoder may drop the first space of a text
        if REPLACEMENT not in text:
            return text, list(text.encode())
        if all(sign in self._byte_signs for sign in name):
            return _escaped([self._byte_signs[sign] for sign in name])
        return text, None

    @cached_property
    def _anchor(self) -> list[int]:
        return list(self.tokenizer()("a", add_special_tokens=False).input_ids)

    @cached_property
    def _byte_signs(self) -> dict[str, int]:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {sign: byte for byte, sign in bytes_to_unicode().items()}


def _escaped(content: list[int]) -> tuple[str, list[int]]:
    """Bytes that are not text by themselves, written as OpenAI does."""
    try:
        return bytes(content).decode(), content
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content


def chat_logprobs(texts: TokenTexts, tokens: "list[TokenLogprobs]") -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, content = texts.of(token)
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": content}

    return {
        "content": [
            {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*other) for other in one.top]} for one in tokens
        ]
    }


def text_logprobs(texts: TokenTexts, tokens: "list[TokenLogprobs]", offset: int) -> dict[str, Any]:
    """The `logprobs` of a completion's choice. offset: characters of the text before these tokens."""
    names = [texts.of(one.token_id)[0] for one in tokens]
    return {
        "tokens": names,
        "token_logprobs": [max(one.logprob, LEAST) for one in tokens],
        "top_logprobs": [
            {texts.of(token)[0]: max(logprob, LEAST) for token, logprob in one.top} or None for one in tokens
        ],
        "text_offset": [offset + sum(map(len, names[:number])) for number in range(len(tokens))],
    }
