"""`--draft auto`: a head of the target, a low-bit copy of it, or a known draft with its tokens, whichever is predicted
fastest.

Imports no torch. Only a draft that is already in the hub's cache is used; if none is, the best of the others is
proposed, and nothing is downloaded. If nothing pays, n-gram lookup in the text drafts (see `ngram_lookup`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loaders.checkpoint.low_bit_copy import copy_of, with_resident_codes
from loaders.checkpoint.model_source import read_vocabulary
from loaders.checkpoint.spec import ModelSpec
from loaders.hub.cache import cached_model
from loaders.lossless.bins import RUNS
from loaders.sizes import format_size
from loaders.tokenizers.vocabulary import check_same_vocabulary
from offload_runtime.errors import OffloadError
from offload_runtime.planning.draft_table import FAMILIES, Candidate, family_of, heads_of
from offload_runtime.planning.expected_acceptance import ExpectedAcceptance, assumed_acceptance, expected_acceptance
from offload_runtime.planning.kv_choice import fitting_plan
from offload_runtime.planning.prediction import predict
from scheduler.machine.machine import Machine
from scheduler.plan.memory import weight_bytes
from scheduler.plan.plan import Limits

RECURRENT_NOTE = "The model keeps a recurrent state, which cannot branch over a tree of drafts: plain decoding."
HEAD_NOTE = "--draft {} drafts with a head that is published for this model, in less memory than a draft model."
UNKNOWN_NOTE = "No draft is known that would help here; --draft MODEL names one."
_LARGEST_SHARE = 0.5  # of the target's bytes; a larger draft never pays off

Accepted = Callable[[ModelSpec], ExpectedAcceptance]
"""How often the target accepts this draft."""
Locate = Callable[[str], Path | None]
"""The path of a hub model on this machine; None if it is not here."""
Read = Callable[[Path], ModelSpec]
"""The specification of the model in a directory."""


@dataclass(frozen=True)
class DraftChoice:
    """directory: of the chosen draft, or None. head: the head in the model's own files is chosen. copy_bits: bits a
    weight of the low-bit copy that is chosen, or None.

    note: one line for the user: the reason, what would be faster, or what is saved.
    """

    directory: Path | None = None
    note: str | None = None
    head: bool = False
    copy_bits: int | None = None


@dataclass(frozen=True)
class _Rated:
    """A draft with its seconds per token and its gain over plain decoding; None if not known.

    candidate: its row in the table; None for a head, of which this has the spec, and for a copy, of so many bits.
    """

    candidate: Candidate | None
    directory: Path | None
    seconds_per_token: float | None
    gain: float | None
    nbytes: int
    head: ModelSpec | None = None
    copy_bits: int | None = None

    @property
    def rank(self) -> tuple[float, int]:
        """Fastest first; smallest first if the machine's speed is not known."""
        return self.seconds_per_token or 0.0, self.nbytes

    @property
    def pays(self) -> bool:
        return self.gain is None or self.gain > 1


def choose_draft(
    target: ModelSpec,
    vocabulary: dict[str, int] | None,
    machine: Machine,
    limits: Limits,
    read: Read,
    locate: Locate = cached_model,
    head: ModelSpec | None = None,
    accepted: Accepted | None = None,
) -> DraftChoice:
    """The draft to use with `target`, if one of its family is on this machine; otherwise at most a proposal.

    vocabulary: of the target, if it is known. head: of the target's own files, if they hold one. accepted: how often
    the target accepts a draft, where that is known by other files than the target's own.
    """
    if not target.can_branch:
        return DraftChoice(note=RECURRENT_NOTE)
    accepted = accepted or partial(expected_acceptance, target.directory)
    family = vocabulary and family_of(vocabulary, str(target.directory))
    candidates = FAMILIES[family].candidates if family else ()
    rated = list(_rated(candidates, vocabulary or {}, target, machine, limits, read, locate, accepted))
    for one in (head, *_heads_here(target, read, locate)):
        rated += _rated_head(one, target, machine, limits, accepted) if one else ()
    copies = _rated_copies(target, machine, limits, accepted)
    present = sorted((one for one in (*rated, *copies) if one.directory), key=lambda one: one.rank)
    best = present[0] if present and present[0].pays else None
    if best and not best.copy_bits:
        own = head is not None and best.head is head
        note = head_note(best.head, target, vocabulary) if best.head else None
        return DraftChoice(None if own else best.directory, note, own)
    absent = sorted((one for one in rated if not one.directory and one.pays), key=lambda one: one.rank)
    published = [HEAD_NOTE.format(name) for name in heads_of(target.name)[:1] if not locate(name)]
    if best:
        notes = [_copy_note(best, present[1:]), *_faster(best, absent), *published]
        return DraftChoice(note=" ".join(notes), copy_bits=best.copy_bits)
    proposals = [_proposal(absent[0])] if absent and not any(one.directory for one in rated) else []
    return DraftChoice(note=" ".join((*proposals, *published)) or UNKNOWN_NOTE)


def _rated(
    candidates: tuple[Candidate, ...],
    vocabulary: dict[str, int],
    target: ModelSpec,
    machine: Machine,
    limits: Limits,
    read: Read,
    locate: Locate,
    accepted: Accepted,
) -> Iterator[_Rated]:
    """The candidates that are small enough, fit beside the target, and have its tokens."""
    for candidate in candidates:
        directory = locate(candidate.name)
        spec, acceptance = candidate.spec(target.dtype), assumed_acceptance(candidate.millions)
        if directory:
            try:
                spec, tokens = read(directory), read_vocabulary(directory)
                check_same_vocabulary(vocabulary, tokens or {}, target.vocab_size, spec.vocab_size)
                known = accepted(spec)
                acceptance = known.by_child if known.measured else acceptance
            except OffloadError:
                continue  # damaged, or other tokens after all: ignored
            if tokens is None:
                continue
        if weight_bytes(spec) > _LARGEST_SHARE * weight_bytes(target):
            continue
        if predicted := _predicted(spec, acceptance, target, machine, limits):
            yield _Rated(candidate, directory, *predicted, weight_bytes(spec))


def _heads_here(target: ModelSpec, read: Read, locate: Locate) -> Iterator[ModelSpec]:
    """The published heads of the target that are on this machine, undamaged, and made for a target of these sizes."""
    for directory in filter(None, map(locate, heads_of(target.name))):
        try:
            head = read(directory)
        except OffloadError:
            continue
        if head.head is not None:
            yield head


def _rated_head(
    head: ModelSpec, target: ModelSpec, machine: Machine, limits: Limits, accepted: Accepted
) -> Iterator[_Rated]:
    acceptance = accepted(head).by_child
    if predicted := _predicted(head, acceptance, target, machine, limits):
        yield _Rated(None, head.directory, *predicted, weight_bytes(head), head)


def _rated_copies(target: ModelSpec, machine: Machine, limits: Limits, accepted: Accepted) -> Iterator[_Rated]:
    """Copies of the target, where it streams and the machine's speed is known: otherwise they only take memory.

    What they take could hold layers, so their gain is over the plan without any draft.
    """
    if target.recurrent:
        return
    plain = fitting_plan(target, None, machine, limits)
    if plain is None or not plain.slots:
        return
    for bits in RUNS:
        beside = with_resident_codes(target, bits)
        copy = copy_of(beside, bits)
        if weight_bytes(copy) + copy.decode_bytes > plain.device_budget:
            continue
        predicted = _predicted(copy, accepted(copy).by_child, beside, machine, limits)
        if predicted and predicted[0] is not None and plain.seconds_per_pass:
            gain = plain.seconds_per_pass / predicted[0]
            yield _Rated(None, target.directory, predicted[0], gain, weight_bytes(copy), copy_bits=bits)


def _predicted(
    draft: ModelSpec, acceptance: tuple[float, ...], target: ModelSpec, machine: Machine, limits: Limits
) -> tuple[float | None, float | None] | None:
    """Seconds per token and the gain over plain decoding, None where speeds are not known; None if it does not fit."""
    plan = fitting_plan(target, draft, machine, limits)
    if plan is None:
        return None
    cost = plan.target_cost(target)
    if not cost.is_known or not cost.knows_computing:
        return None, None
    predicted = predict(plan, target, draft, acceptance)
    return predicted.seconds_per_token, predicted.plain.total / predicted.seconds_per_token


def head_note(head: ModelSpec, target: ModelSpec, vocabulary: dict[str, int] | None) -> str | None:
    """What a head takes beside the smallest draft model that is known for the target; None if none is known."""
    family = vocabulary and family_of(vocabulary, str(target.directory))
    if not family:
        return None
    least = min(FAMILIES[family].candidates, key=lambda candidate: candidate.millions)
    sizes = [format_size(weight_bytes(spec)) for spec in (head, least.spec(target.dtype))]
    name = "The head in the model's own files" if head.directory == target.directory else f"The {head.name}"
    return f"{name} takes {sizes[0]}, {least.name} as the draft would take {sizes[1]}."


def _copy_note(best: _Rated, others: Sequence[_Rated]) -> str:
    """Why a copy drafts, and what the next best would take."""
    seconds = best.seconds_per_token or 0.0
    note = f"A {best.copy_bits}-bit copy of the model drafts: {seconds:.2g} s per token predicted"
    if other := next((one for one in others if not one.copy_bits and one.seconds_per_token), None):
        name = other.candidate.name if other.candidate else "a head"
        note += f", {other.seconds_per_token:.2g} with {name}"
    return f"{note}, {seconds * (best.gain or 1.0):.2g} without a draft."


def _faster(best: _Rated, absent: Sequence[_Rated]) -> Iterator[str]:
    """A proposal of a draft that is predicted to be faster than the best one here."""
    if absent and best.seconds_per_token and (seconds := absent[0].seconds_per_token or 0.0) < best.seconds_per_token:
        yield _proposal(replace(absent[0], gain=best.seconds_per_token / seconds if seconds else None))


def _proposal(rated: _Rated) -> str:
    assert rated.candidate is not None
    name = rated.candidate.name
    gigabytes = rated.candidate.millions * 2 / 1000
    gain = f"make this about {rated.gain:.1f} x as fast" if rated.gain else "speed this up"
    return f"--draft {name} would {gain} (a download of {gigabytes:.1f} GB)."
