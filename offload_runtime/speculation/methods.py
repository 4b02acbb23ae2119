"""The methods of drafting a tree, by name: its shape, how its tokens are drawn, and the rule that verifies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from numpy.typing import ArrayLike

from offload_runtime.speculation.adaptive_drafting import AdaptiveDrafting
from offload_runtime.speculation.draft import Draft, Growth
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.growth import run_growths
from offload_runtime.speculation.static_drafting import Drawing, StaticDrafting, likeliest
from sequoia_tree import best_chains, chain, optimal_tree
from sequoia_tree.acceptance.acceptance import MAX_CHILDREN, Acceptance
from sequoia_tree.drafting.priorities import DrawnCosts, LikeliestCosts
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.tree import Tree
from sequoia_tree.verification.sampling import draw_with_replacement, draw_without_replacement

Growing = Callable[[Sequence[int], Sampling, torch.Generator, int, frozenset[int]], Growth[DraftTree]]
"""Text, sampling, random numbers, the sequence of the draft's cache that holds the text, and the text's end tokens."""
TreeMaker = Callable[[ArrayLike, int, int], Tree]  # acceptance by child number, nodes, depth limit

SHAPES: dict[str, TreeMaker] = {
    "sequoia": optimal_tree,
    "topk": optimal_tree,
    "chain": lambda acceptance, size, depth: chain(min(size, depth + 1)),
    "chains": best_chains,
    "specinfer": best_chains,
}
DRAWINGS: dict[str, Drawing] = {"topk": likeliest, "specinfer": draw_with_replacement}


@dataclass(frozen=True)
class Method:
    """What one step does: `growing` drafts a tree after a text, `rule` (`sequoia_tree.verification`) verifies it.

    draft: which it asks for passes; None without one. draft_rows: rows of each of these passes. most_nodes: of its
    trees. predicted_tokens, predicted_seconds: expected tokens and seconds of a step, drafting included.
    """

    name: str
    growing: Growing
    rule: str
    draft: Draft | None = None
    most_nodes: int = 1
    draft_rows: tuple[int, ...] = ()
    predicted_tokens: float | None = None
    predicted_seconds: float | None = None

    def grow(
        self,
        text: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
        ends: frozenset[int] = frozenset(),
    ) -> DraftTree:
        """The tree of one text, which the draft's cache holds as its first; no node is behind one of `ends`."""
        run = self.draft.run if self.draft else None
        return run_growths([self.growing(text, sampling, generator, 0, ends)], run)[0]


def _root_only(
    text: Sequence[int], sampling: Sampling, generator: torch.Generator, sequence: int, ends: frozenset[int]
) -> Growth[DraftTree]:
    return DraftTree.root_only(text[-1])
    yield  # asks for no pass


PLAIN = Method("none", _root_only, "match")


def static_method(name: str, draft: Draft, acceptance: ArrayLike, size: int, depth: int, rule: str) -> Method:
    """The best tree of the shape `name` for descending acceptances by child number."""
    tree = SHAPES[name](acceptance, size, depth)
    if tree.size == 1:
        return PLAIN
    drafting = StaticDrafting(draft, tree, DRAWINGS.get(name, draw_without_replacement))
    return Method(name, drafting.growing, rule, draft, size, drafting.rows)


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
    return Method("adaptive", partial(drafting.growing, costs=costs), rule, draft, size, drafting.rows)
