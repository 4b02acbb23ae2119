"""What a pair is expected to accept, before anything is loaded. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from offload_runtime import acceptance_store
from offload_runtime.acceptance_store import Setting
from sequoia_tree.acceptance import Acceptance
from sequoia_tree.choose import damped

TYPICAL = Setting(temperature=0.6)


@dataclass(frozen=True)
class ExpectedAcceptance:
    """`by_child`: the chance that the k-th child is the accepted one, never rising; `measured` of this very pair."""

    by_child: tuple[float, ...]
    measured: bool

    def verified_by(self, rule: str) -> tuple[float, ...]:
        """As good as the rule makes it: traversal gets further along paths (see `damped`)."""
        return tuple(damped(self.by_child).tolist()) if rule == "traversal" else self.by_child


def expected_acceptance(model: Path, draft: Path) -> ExpectedAcceptance:
    """As measured near temperature 0.6, else what Sequoia publishes of Llama-3 8B drafting for 70B."""
    pair = acceptance_store.load(model, draft)
    known = pair.nearest(TYPICAL) if pair else None
    acceptance = known[0] if known else Acceptance.prior()
    return ExpectedAcceptance(tuple(acceptance.falling().tolist()), known is not None)
