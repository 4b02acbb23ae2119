"""The rules of one request, in the order in which transformers' `generate` applies its logits processors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.counts import CountPenalty
from sequoia_tree.shaping.dry import DryPenalty
from sequoia_tree.shaping.finite import FiniteScores
from sequoia_tree.shaping.lengths import EndGrowsLikelier, Excluded, Forced
from sequoia_tree.shaping.ngrams import NoRepeatedNgram
from sequoia_tree.shaping.repetition import PromptBonus, RepetitionPenalty
from sequoia_tree.shaping.rule import Rule
from sequoia_tree.shaping.sequences import SequenceBias
from sequoia_tree.shaping.settings import Sampling


@dataclass(frozen=True)
class TokenRules:
    """Rules with token ids, named as in a generation config; the numbers in `Sampling` are not repeated.

    sequence_bias: (sequence, bias) pairs. logit_bias: (token, bias) pairs, added to it. dry_sequence_breakers: tokens.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    dry_sequence_breakers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """What rules need to know of a request: its prompt, its end tokens, and the most tokens with the prompt."""

    prompt: Sequence[int]
    end_tokens: Set[int]
    most_tokens: int
    vocab_size: int
    device: torch.device


def bound_rules(sampling: Sampling, wanted: TokenRules, bounds: Bounds) -> tuple[Rule, ...]:
    """The rules that are not off. Raises ValueError for biases and forced tokens outside the vocabulary.

    transformers knows no presence, frequency or DRY penalty: they come after the repetition penalty, as in vLLM.
    """
    return (
        *_biases(wanted, bounds),
        *_repetition(sampling, wanted, bounds),
        *_banned(sampling, wanted, bounds),
        *_begin_and_end(sampling, wanted, bounds),
    )


def _biases(wanted: TokenRules, bounds: Bounds) -> Iterator[Rule]:
    biases = dict(wanted.sequence_bias)
    for token, bias in wanted.logit_bias:
        biases[token,] = biases.get((token,), 0.0) + bias
    if biases:
        yield _sequence_bias(biases, "a bias", bounds)


def _repetition(sampling: Sampling, wanted: TokenRules, bounds: Bounds) -> Iterator[Rule]:
    if sampling.encoder_repetition_penalty != 1:
        yield PromptBonus(sampling.encoder_repetition_penalty, _ids(bounds.prompt, bounds))
    if sampling.repetition_penalty != 1:
        yield RepetitionPenalty(sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        yield CountPenalty(sampling.presence_penalty, sampling.frequency_penalty, len(bounds.prompt))
    if sampling.dry_multiplier:
        breakers = torch.nn.functional.pad(_mask(wanted.dry_sequence_breakers, bounds), (0, 1), value=True)
        yield DryPenalty(
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            sampling.dry_penalty_last_n,
            breakers,
        )


def _banned(sampling: Sampling, wanted: TokenRules, bounds: Bounds) -> Iterator[Rule]:
    if sampling.no_repeat_ngram_size:
        yield NoRepeatedNgram(sampling.no_repeat_ngram_size)
    if sampling.encoder_no_repeat_ngram_size:
        yield NoRepeatedNgram(sampling.encoder_no_repeat_ngram_size, _ids(bounds.prompt, bounds))
    words = [word for word in wanted.bad_words_ids if not (len(word) == 1 and word[0] in bounds.end_tokens)]
    if words:
        yield _sequence_bias(dict.fromkeys(words, -torch.inf), "bad_words_ids", bounds)


def _begin_and_end(sampling: Sampling, wanted: TokenRules, bounds: Bounds) -> Iterator[Rule]:
    prompt_length, ends = len(bounds.prompt), _mask(bounds.end_tokens, bounds)
    shortest = prompt_length + sampling.min_new_tokens if sampling.min_new_tokens else sampling.min_length
    if bounds.end_tokens and shortest > prompt_length:
        yield Excluded(ends, last=shortest - 1)
    if wanted.forced_bos_token_id is not None:
        yield Forced(_forced((wanted.forced_bos_token_id,), "forced_bos_token_id", bounds), 1)
    if wanted.forced_eos_token_id:
        forced = _forced(wanted.forced_eos_token_id, "forced_eos_token_id", bounds)
        yield Forced(forced, bounds.most_tokens - 1)
    if wanted.remove_invalid_values:
        yield FiniteScores()
    if wanted.exponential_decay_length_penalty and bounds.end_tokens:
        start, factor = wanted.exponential_decay_length_penalty
        yield EndGrowsLikelier(ends, prompt_length + start, factor)
    if wanted.suppress_tokens:
        yield Excluded(_mask(wanted.suppress_tokens, bounds))
    if wanted.begin_suppress_tokens:
        begin = prompt_length + (prompt_length == 1 and wanted.forced_bos_token_id is not None)
        yield Excluded(_mask(wanted.begin_suppress_tokens, bounds), first=begin, last=begin)


def _sequence_bias(biases: dict[tuple[int, ...], float], name: str, bounds: Bounds) -> SequenceBias:
    _check_inside((token for sequence in biases for token in sequence), name, bounds)
    return SequenceBias.of(biases, bounds.vocab_size, bounds.device)


def _forced(tokens: tuple[int, ...], name: str, bounds: Bounds) -> Tensor:
    _check_inside(tokens, name, bounds)
    return _mask(tokens, bounds)


def _check_inside(tokens: Iterable[int], name: str, bounds: Bounds) -> None:
    outside = [token for token in tokens if not 0 <= token < bounds.vocab_size]
    if outside:
        raise ValueError(f"{name} names token {outside[0]}, outside the vocabulary (0 to {bounds.vocab_size - 1})")


def _mask(tokens: Iterable[int], bounds: Bounds) -> Tensor:
    """bool [V]; tokens outside the vocabulary are never written and need no rule."""
    mask = torch.zeros(bounds.vocab_size, dtype=torch.bool)
    mask[[token for token in tokens if 0 <= token < bounds.vocab_size]] = True
    return mask.to(bounds.device)


def _ids(tokens: Sequence[int], bounds: Bounds) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=bounds.device)
