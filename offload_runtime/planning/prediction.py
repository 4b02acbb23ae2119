"""Seconds per token with and without the draft, predicted before anything is loaded. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from loaders.checkpoint.spec import ModelSpec
from scheduler.plan.plan import Plan
from scheduler.plan.simulation import PassSeconds
from scheduler.plan.tree_cost import growth_seconds, verification_seconds
from sequoia_tree.choice.choose import Choice, Yield, choose

STATIC = "static"
_LEAST_SECONDS = 1e-9  # of a pass on a machine of unknown speed


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of passes in the middle of the context.

    plain: a pass over one token. tree: the static tree with the fewest seconds per token within the plan's limits, or
    plain decoding if no tree pays off. tree_pass: a pass over it, with the ring filled while the draft ran.
    draft_seconds: all levels of the draft. verification_seconds: between the pass and the next draft.
    """

    plain: PassSeconds
    tree: Choice
    tree_pass: PassSeconds
    draft_seconds: float
    verification_seconds: float

    @property
    def seconds_per_token(self) -> float:
        """With the tree."""
        return (self.tree_pass.total + self.draft_seconds + self.verification_seconds) / self.tree.tokens_per_pass


def predict(plan: Plan, target: ModelSpec, draft: ModelSpec | None, acceptance: Sequence[float]) -> Prediction:
    """Predict the times and tokens of passes under `plan`. acceptance: by child number."""
    cost, context = plan.target_cost(target), plan.context_length // 2

    def pass_seconds(nodes: int) -> float:
        verifying = verification_seconds(nodes, target.vocab_size, plan.machine)
        return max(cost.seconds(nodes, nodes, context).total + verifying, _LEAST_SECONDS)

    plain = cost.seconds(1, 1, context)
    tree = Choice("none", 1, 0, 1.0, pass_seconds(1), 1.0)
    if draft is not None and plan.tree_depth:
        drafting = plan.draft_cost(draft)
        tree = choose(
            {STATIC: Yield(tuple(acceptance))},
            pass_seconds,
            lambda rows: (
                drafting.seconds(rows, rows, context).total + growth_seconds(rows, target.vocab_size, plan.machine)
            ),
            plan.tree_size,
            plan.tree_depth,
            sizes=[max(2, plan.tree_size * share // 4) for share in (1, 2, 3, 4)],
        )
    verifying = verification_seconds(tree.size, target.vocab_size, plan.machine)
    draft_seconds = max(0.0, tree.seconds_per_pass - pass_seconds(tree.size)) if tree.depth else 0.0
    tree_pass = cost.seconds(tree.size, tree.size, context, gap=draft_seconds + verifying)
    return Prediction(plain, tree, tree_pass, draft_seconds, verifying)
