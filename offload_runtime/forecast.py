"""What trees are expected to bring, before anything is loaded. Imports no torch."""

from collections.abc import Iterator

from offload_runtime import acceptance_store
from offload_runtime.acceptance_store import Setting
from offload_runtime.planning import Preparation
from sequoia_tree.acceptance import Acceptance
from sequoia_tree.choose import reach_by_size

_TYPICAL = Setting(temperature=0.6)
_MEASURED = "measured for this pair"
_PUBLISHED = "of Llama-3 8B and 70B as published\n(not measured for this pair: scripts/measure_acceptance.py does)"


def forecast(preparation: Preparation) -> Iterator[str]:
    """Lines for the end of a plan: tokens per pass of the largest static tree, and what that makes of its seconds."""
    plan, draft = preparation.plan, preparation.draft_directory
    if draft is None:
        if preparation.draft_note:
            yield preparation.draft_note
        return
    pair = acceptance_store.load(preparation.options.model, draft)
    known = pair.nearest(_TYPICAL) if pair else None
    acceptance = (known[0] if known else Acceptance.prior()).falling()
    tokens = reach_by_size(acceptance, plan.tree_size, plan.tree_depth)[-1]
    source = _MEASURED if known else _PUBLISHED
    yield f"Expected: {tokens:.1f} tokens per pass with a static tree, by the acceptance {source}."
    if plan.seconds_per_pass:
        yield f"With the draft about {_pace(tokens / plan.seconds_per_pass)} tokens/s, less the time of drafting."


def _pace(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
