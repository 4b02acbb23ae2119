"""`--draft auto`: a head of the target, or the known draft with its tokens, whichever is predicted fastest.

Imports no torch. Only a draft that is already in the hub's cache is used. If there is none, the best of the others is
proposed, nothing is downloaded, and n-gram lookup in the text drafts instead (see `ngram_lookup`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loaders.checkpoint.model_source import read_vocabulary
from loaders.checkpoint.spec import ModelSpec
from loaders.hub.cache import cached_model
from loaders.sizes import format_size
from loaders.tokenizers.vocabulary import check_same_vocabulary
from offload_runtime.errors import DoesNotFitError, OffloadError
from offload_runtime.planning.draft_table import FAMILIES, Candidate, family_of, heads_of
from offload_runtime.planning.expected_acceptance import assumed_acceptance, expected_acceptance
from offload_runtime.planning.kv_choice import fitting_plan
from offload_runtime.planning.prediction import predict
from scheduler.machine.machine import Machine
from scheduler.plan.memory import weight_bytes
from scheduler.plan.plan import Limits

RECURRENT_NOTE = "The model keeps a recurrent state, which cannot branch over a tree of drafts: plain decoding."
HEAD_NOTE = "--draft {} drafts with a head that is published for this model, in less memory than a draft model."
UNKNOWN_NOTE = "No draft is known that would help here; --draft MODEL names one."
_LARGEST_SHARE = 0.5  # of the target's bytes; a larger draft never pays off

Locate = Callable[[str], Path | None]
"""The path of a hub model on this machine; None if it is not here."""
Read = Callable[[Path], ModelSpec]
"""The specification of the model in a directory."""


@dataclass(frozen=True)
class DraftChoice:
    """directory: of the chosen draft, or None. head: the head in the model's own files is chosen.

    note: one line for the user: the reason, what would be faster, or what is saved.
    """

    directory: Path | None = None
    note: str | None = None
    head: bool = False


@dataclass(frozen=True)
class _Rated:
    """A draft with its seconds per token and its gain over plain decoding; None if not known.

    candidate: its row in the table; None for a head, of which this has the spec.
    """

    candidate: Candidate | None
    directory: Path | None
    seconds_per_token: float | None
    gain: float | None
    nbytes: int
    head: ModelSpec | None = None

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
) -> DraftChoice:
    """The draft to use with `target`, if one of its family is on this machine; otherwise at most a proposal.

    vocabulary: of the target, if it is known. head: of the target's own files, if they hold one.
    """
    if not target.can_branch:
        return DraftChoice(note=RECURRENT_NOTE)
    family = vocabulary and family_of(vocabulary, str(target.directory))
    candidates = FAMILIES[family].candidates if family else ()
    rated = list(_rated(candidates, vocabulary or {}, target, machine, limits, read, locate))
    for one in (head, *_heads_here(target, read, locate)):
        rated += _rated_head(one, target, machine, limits) if one else ()
    present = sorted((one for one in rated if one.directory), key=lambda one: one.rank)
    if present and present[0].pays:
        best, own = present[0], head is not None and present[0].head is head
        note = head_note(best.head, target, vocabulary) if best.head else None
        return DraftChoice(None if own else best.directory, note, own)
    absent = sorted((one for one in rated if not one.directory and one.pays), key=lambda one: one.rank)
    proposals = [_proposal(absent[0])] if absent and not present else []
    proposals += [HEAD_NOTE.format(name) for name in heads_of(target.name)[:1] if not locate(name)]
    return DraftChoice(note=" ".join(proposals) or UNKNOWN_NOTE)


def _rated(
    candidates: tuple[Candidate, ...],
    vocabulary: dict[str, int],
    target: ModelSpec,
    machine: Machine,
    limits: Limits,
    read: Read,
    locate: Locate,
) -> Iterator[_Rated]:
    """The candidates that are small enough, fit beside the target, and have its tokens."""
    for candidate in candidates:
        directory = locate(candidate.name)
        spec, acceptance = candidate.spec(target.dtype), assumed_acceptance(candidate.millions)
        if directory:
            try:
                spec, tokens = read(directory), read_vocabulary(directory)
                check_same_vocabulary(vocabulary, tokens or {}, target.vocab_size, spec.vocab_size)
                known = expected_acceptance(target.directory, spec)
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


def _rated_head(head: ModelSpec, target: ModelSpec, machine: Machine, limits: Limits) -> Iterator[_Rated]:
    acceptance = expected_acceptance(target.directory, head).by_child
    if predicted := _predicted(head, acceptance, target, machine, limits):
        yield _Rated(None, head.directory, *predicted, weight_bytes(head), head)


def _predicted(
    draft: ModelSpec, acceptance: tuple[float, ...], target: ModelSpec, machine: Machine, limits: Limits
) -> tuple[float | None, float | None] | None:
    """Seconds per token and the gain over plain decoding, None where speeds are not known; None if it does not fit."""
    try:
        plan = fitting_plan(target, draft, machine, limits)
    except DoesNotFitError:
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


def _proposal(rated: _Rated) -> str:
    assert rated.candidate is not None
    name = rated.candidate.name
    gigabytes = rated.candidate.millions * 2 / 1000
    gain = f"make this about {rated.gain:.1f} x as fast" if rated.gain else "speed this up"
    return f"--draft {name} would {gain} (a download of {gigabytes:.1f} GB)."
