"""The expected acceptance of a pair, before anything is loaded. Imports no torch."""

from dataclasses import dataclass
from math import log10
from pathlib import Path

from loaders.checkpoint.spec import ITEMSIZE, ModelSpec
from offload_runtime.speculation import acceptance_store
from offload_runtime.speculation.acceptance_store import Setting
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.choice.choose import damped

TYPICAL = Setting(temperature=0.6)

# Assumed for pairs that were never measured: the published first acceptance is for a draft of 8 billion parameters, and
# a draft with a tenth of them is rejected 1.45 times as often. That gives an acceptance of 0.5 for 68 million.
_PUBLISHED_MILLIONS = 8030
_REFUSED_PER_TENTH = 1.45
_LARGEST_REFUSED = 0.95
# Of a head for multi-token prediction. DeepSeek-V3's gives 3.1 to 3.2 tokens per pass in chains of 7 (published beside
# nebius/MTP-DeepSeek-V3-0324 on the hub): as a chain does whose tokens are accepted in 0.69 of all cases.
_HEAD_ACCEPTED = 0.69
# Of a low-bit copy of the target, by its bits: measured with Gemma 3 270M at temperature 0.6, at most 16 levels below
# rows that the target has computed. SmolLM2-135M, from a file in 4 bits, has 0.668, 0.817, 0.900.
_COPY_ACCEPTED = {3: 0.696, 4: 0.873, 5: 0.932}


@dataclass(frozen=True)
class ExpectedAcceptance:
    """by_child: probability that the k-th child is the accepted one, descending. measured: for exactly this pair."""

    by_child: tuple[float, ...]
    measured: bool

    def verified_by(self, rule: str) -> tuple[float, ...]:
        """Corrected for the verification rule: traversal accepts longer paths (see `damped`)."""
        return tuple(damped(self.by_child).tolist()) if rule == "traversal" else self.by_child


def expected_acceptance(model: Path, draft: ModelSpec) -> ExpectedAcceptance:
    """Measured near temperature 0.6, else assumed for a draft of this size."""
    pair = acceptance_store.load(model, draft.copy_bits or draft.directory)
    known = pair.nearest(TYPICAL) if pair else None
    if known:
        return ExpectedAcceptance(tuple(known[0].falling().tolist()), True)
    return assumed_for(draft)


def assumed_for(draft: ModelSpec) -> ExpectedAcceptance:
    """By the number of the draft's parameters alone; for a head, which has few, the same for all."""
    if draft.copy_bits is not None:
        return ExpectedAcceptance(_with_first(_COPY_ACCEPTED[draft.copy_bits]), False)
    if draft.head is not None:
        return ExpectedAcceptance(_with_first(_HEAD_ACCEPTED), False)
    values = draft.embeddings_and_head_bytes + sum(layer.weight_bytes for layer in draft.layers)
    return ExpectedAcceptance(assumed_acceptance(values / ITEMSIZE[draft.dtype] / 1e6), False)


def assumed_acceptance(millions: float) -> tuple[float, ...]:
    """For a pair that was never measured: the published vector, scaled by the draft's number of parameters.

    A rule of thumb that only ranks drafts; the real acceptance is measured while the pair runs.
    """
    tenths = log10(_PUBLISHED_MILLIONS / millions)
    return _with_first(1 - min(_LARGEST_REFUSED, (1 - Acceptance.prior().falling()[0]) * _REFUSED_PER_TENTH**tenths))


def less_accepted(acceptance: ExpectedAcceptance, by: float) -> ExpectedAcceptance:
    """The same with a first child that is accepted less often: how much a prediction depends on what is assumed."""
    return ExpectedAcceptance(_with_first(acceptance.by_child[0] - by), False)


def _with_first(accepted: float) -> tuple[float, ...]:
    """The published vector, scaled so that a first child is accepted as given."""
    published, refused = Acceptance.prior().falling(), 1 - accepted
    later = published[1:] * refused / (1 - published[0])
    return (1 - refused, *(min(value, 1 - refused) for value in later.tolist()))
