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
    """Predicted seconds of passes that `texts` texts share, each in the middle of its context.

    plain: a pass over one token of one text. tree: of each text, the static tree with the fewest seconds per token
    within the plan's limits, or plain decoding if no tree pays off. tree_pass: a pass over all trees, with the ring
    filled while the draft ran. draft_seconds: all levels of the draft. verification_seconds: between the pass and the
    next draft.
    """

    plain: PassSeconds
    tree: Choice
    tree_pass: PassSeconds
    draft_seconds: float
    verification_seconds: float
    texts: int = 1

    @property
    def seconds_per_token(self) -> float:
        """Of each text, with the tree."""
        return self._cycle / self.tree.tokens_per_pass

    @property
    def link_idle(self) -> float:
        """The share of the time of drafting, pass and verification in which nothing crosses the link, or the disk."""
        return max(0.0, 1 - max(self.tree_pass.link, self.tree_pass.disk) / self._cycle)

    @property
    def device_idle(self) -> float:
        """The share of that time in which the device neither drafts, computes a pass nor verifies."""
        busy = self.tree_pass.compute + self.draft_seconds + self.verification_seconds
        return max(0.0, 1 - busy / self._cycle)

    @property
    def _cycle(self) -> float:
        return max(_LEAST_SECONDS, self.tree_pass.total + self.draft_seconds + self.verification_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of all texts together."""
        return self.texts / self.seconds_per_token


def is_predictable(plan: Plan, target: ModelSpec) -> bool:
    """Whether all speeds that matter for passes under `plan` are known."""
    cost = plan.target_cost(target)
    return cost.is_known and cost.knows_computing and (plan.slots > 0 or cost.knows_passes)


def predict(
    plan: Plan, target: ModelSpec, draft: ModelSpec | None, acceptance: Sequence[float], texts: int = 1
) -> Prediction:
    """Predict the times and tokens of passes under `plan`. acceptance: by child number.

    texts: share a pass, at most the plan's own. Each has the same part of its nodes, and is drafted and verified by
    itself.
    """
    cost, context, vocab_size = plan.target_cost(target), plan.context_length // 2, target.vocab_size

    def verifying(nodes: int) -> float:
        return texts * verification_seconds(nodes, vocab_size, plan.machine)

    def pass_seconds(nodes: int) -> float:
        together = cost.seconds(texts * nodes, texts * nodes, context, texts=texts).total
        return max(together + verifying(nodes), _LEAST_SECONDS)

    plain = cost.seconds(1, 1, context)
    tree = Choice("none", 1, 0, 1.0, pass_seconds(1), 1.0)
    if draft is not None and plan.tree_depth:
        drafting = plan.draft_cost(draft, target)
        most = min(plan.tree_size, plan.nodes // texts)
        tree = choose(
            {STATIC: Yield(tuple(acceptance))},
            pass_seconds,
            lambda rows: (
                drafting.seconds(texts * rows, texts * rows, context, texts=texts).total
                + texts * growth_seconds(rows, vocab_size, plan.machine)
            ),
            most,
            plan.tree_depth,
            sizes=[max(2, most * share // 4) for share in (1, 2, 3, 4)],
        )
    draft_seconds = max(0.0, tree.seconds_per_pass - pass_seconds(tree.size)) if tree.depth else 0.0
    together, between = texts * tree.size, draft_seconds + verifying(tree.size)
    tree_pass = cost.seconds(together, together, context, gap=between, texts=texts)
    return Prediction(plain, tree, tree_pass, draft_seconds, verifying(tree.size), texts)
