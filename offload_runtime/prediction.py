"""Seconds per token with and without the draft, predicted before anything is loaded. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from loaders.spec import ModelSpec
from scheduler.pass_cost import PassCost, resident_cost
from scheduler.pipeline import PassSeconds
from scheduler.plan import Plan
from sequoia_tree.choose import Choice, Yield, choose

STATIC = "static"


@dataclass(frozen=True)
class Prediction:
    """Of passes in the middle of the context. Seconds.

    plain: a pass over one token. tree: the static tree of fewest seconds per token within the plan's limits, or plain
    decoding where no tree is worth its time. tree_pass: a pass over it, which the ring has filled its slots for while
    the draft worked. draft_seconds: all its levels.
    """

    plain: PassSeconds
    tree: Choice
    tree_pass: PassSeconds
    draft_seconds: float

    @property
    def seconds_per_token(self) -> float:
        """With the tree."""
        return (self.tree_pass.total + self.draft_seconds) / self.tree.tokens_per_pass


def predict(
    plan: Plan, target: ModelSpec, draft: ModelSpec | None, acceptance: Sequence[float], sizes: Sequence[int]
) -> Prediction:
    """What passes under `plan` cost and yield; `acceptance` by child number, `sizes` of trees to consider."""
    cost, context = PassCost(target, plan.tiers, plan.slots, plan.machine), plan.context_length // 2
    plain = cost.seconds(1, 1, context)
    tree = Choice("none", 1, 0, 1.0, plain.total, 1.0)
    if draft is not None and plan.tree_depth:
        drafting = resident_cost(draft, plan.machine)
        tree = choose(
            {STATIC: Yield(tuple(acceptance))},
            lambda nodes: max(cost.seconds(nodes, nodes, context).total, _LEAST_SECONDS),
            lambda rows: drafting.seconds(rows, rows, context).total,
            plan.tree_size,
            plan.tree_depth,
            sizes=[min(size, plan.tree_size) for size in sizes],
        )
    draft_seconds = tree.seconds_per_pass - cost.seconds(tree.size, tree.size, context).total
    draft_seconds = max(0.0, draft_seconds) if tree.depth else 0.0
    tree_pass = cost.seconds(tree.size, tree.size, context, gap=draft_seconds)
    return Prediction(plain, tree, tree_pass, draft_seconds)


_LEAST_SECONDS = 1e-9  # of a pass on a machine of which nothing is known
