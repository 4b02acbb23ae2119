"""The methods of drafting a tree, by name: its shape, how its tokens are drawn, and the rule that verifies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from numpy.typing import ArrayLike

from offload_runtime.speculation.adaptive_drafting import AdaptiveDrafting
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.static_drafting import Drawing, StaticDrafting, likeliest
from sequoia_tree import best_chains, chain, optimal_tree
from sequoia_tree.acceptance.acceptance import MAX_CHILDREN, Acceptance
from sequoia_tree.drafting.priorities import DrawnCosts, LikeliestCosts
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.tree import Tree
from sequoia_tree.verification.sampling import draw_with_replacement, draw_without_replacement

Grow = Callable[[Sequence[int], Sampling, torch.Generator], DraftTree]
Shape = Callable[[ArrayLike, int, int], Tree]  # acceptance by child number, nodes, depth limit

SHAPES: dict[str, Shape] = {
    "sequoia": optimal_tree,
    "topk": optimal_tree,
    "chain": lambda acceptance, size, depth: chain(min(size, depth + 1)),
    "chains": best_chains,
    "specinfer": best_chains,
}
DRAWINGS: dict[str, Drawing] = {"topk": likeliest, "specinfer": draw_with_replacement}


@dataclass(frozen=True)
class Method:
    """What one step does: `grow` drafts a tree after a text, `rule` (`sequoia_tree.verification`) verifies it.

    draft_rows: rows of each draft pass. predicted_tokens, predicted_seconds: expected tokens and seconds of a step,
    drafting included.
    """

    name: str
    grow: Grow
    rule: str
    draft_rows: tuple[int, ...] = ()
    predicted_tokens: float | None = None
    predicted_seconds: float | None = None


def _root_only(text: Sequence[int], sampling: Sampling, generator: torch.Generator) -> DraftTree:
    return DraftTree.root_only(text[-1])


PLAIN = Method("none", _root_only, "match")


def static_method(name: str, draft: Draft, acceptance: ArrayLike, size: int, depth: int, rule: str) -> Method:
    """The best tree of the shape `name` for descending acceptances by child number."""
    tree = SHAPES[name](acceptance, size, depth)
    if tree.size == 1:
        return PLAIN
    drafting = StaticDrafting(draft, tree, DRAWINGS.get(name, draw_without_replacement))
    return Method(name, drafting.grow, rule, drafting.rows)


def adaptive_method(
    draft: Draft, acceptance: Acceptance, sampling: Sampling, size: int, depth: int, rule: str
) -> Method:
    """Trees drafted per context, by the known acceptance of the pair under `sampling`."""
    if size < 2 or depth < 1:
        return PLAIN
    costs: DrawnCosts | LikeliestCosts
    if sampling.temperature:
        costs = DrawnCosts.measured(acceptance, draft.model.device)
    else:
        costs = LikeliestCosts(acceptance.scale())
    drafting = AdaptiveDrafting(draft, size, min(depth, size - 1), MAX_CHILDREN)
    return Method("adaptive", partial(drafting.grow, costs=costs), rule, drafting.rows)
