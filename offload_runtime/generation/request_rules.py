"""Combines the model's generation config and the arguments of a call into the rules of one request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from offload_runtime.errors import ModelFilesError, UsageError
from offload_runtime.generation.config_fields import bias
from sequoia_tree.shaping.order import Bounds, TokenRules, bound_rules
from sequoia_tree.shaping.settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRY_BREAKERS = ("\n", ":", '"', "*")  # as in text-generation-webui and llama.cpp


class RequestRules:
    """Makes the rules of each request from those of the generation config and those of the call."""

    def __init__(self, wanted: TokenRules):
        self._wanted = wanted
        self._breakers: dict[tuple[str, ...], tuple[int, ...]] = {}

    def bind(
        self,
        sampling: Sampling,
        bounds: Bounds,
        logit_bias: Mapping[int, float] | None,
        dry_breakers: str | Sequence[str] | None,
        tokenizer: "Callable[[], PreTrainedTokenizerBase] | None",
    ) -> Sampling:
        """`sampling` with its rules. tokenizer: finds DRY's sequence breakers; None if the model has none.

        Raises UsageError for invalid arguments, ModelFilesError if the file names tokens outside the vocabulary.
        """
        texts = _breaker_texts(dry_breakers)
        wanted = replace(
            self._wanted,
            logit_bias=_logit_biases(logit_bias, bounds.vocab_size),
            dry_sequence_breakers=self._tokens_with(texts, tokenizer) if sampling.dry_multiplier and tokenizer else (),
        )
        try:
            return replace(sampling, rules=bound_rules(sampling, wanted, bounds))
        except ValueError as error:
            raise ModelFilesError(f"generation_config.json: {error}. Correct or remove the file.") from error

    def _tokens_with(
        self, texts: tuple[str, ...], tokenizer: "Callable[[], PreTrainedTokenizerBase]"
    ) -> tuple[int, ...]:
        """The tokens whose text contains one of `texts`. Cached, since decoding every token takes a second."""
        if texts not in self._breakers:
            known = tokenizer()
            decoded = known.batch_decode([[token] for token in range(len(known))])
            found = (token for token, written in enumerate(decoded) if any(text in written for text in texts))
            self._breakers[texts] = tuple(found)
        return self._breakers[texts]


def _logit_biases(given: Mapping[int, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if not isinstance(given or {}, Mapping):
        raise UsageError(f"logit_bias must be a mapping from token ids to biases, not {given!r:.80}")
    for token, amount in (given or {}).items():
        if type(token) is not int or not 0 <= token < vocab_size:
            raise UsageError(f"logit_bias: {token!r:.80} is no token id (0 to {vocab_size - 1})")
        try:
            bias(amount)
        except ValueError as error:
            raise UsageError(f"logit_bias: the bias of token {token} must be {error}, not {amount!r:.80}") from error
    return tuple((given or {}).items())


def _breaker_texts(given: str | Sequence[str] | None) -> tuple[str, ...]:
    breakers = DRY_BREAKERS if given is None else (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) and text for text in breakers):
        raise UsageError(f"dry_sequence_breakers must be texts, none empty, not {given!r:.80}")
    return breakers
