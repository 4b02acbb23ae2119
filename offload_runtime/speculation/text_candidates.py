"""Candidates from the text itself: where it repeats what it said before, the tree gets the continuation of then."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.drafting.suffix import SuffixMatcher
from sequoia_tree.tree import Tree

LEAST_MATCH = 4  # tokens that must have occurred before in the same order; fewer repeat by chance
_SHARE = 8  # of a tree's nodes at most one in so many is a candidate: what chance matches may cost


@dataclass(frozen=True)
class Candidates:
    """What may follow the text: `tokens`, of which at most `most` become nodes of their own."""

    tokens: list[int]
    most: int


class RepeatedText:
    """Finds the end of a growing text in what came before it."""

    def __init__(self) -> None:
        self._matcher = SuffixMatcher()

    def candidates(self, text: Sequence[int], tree_size: int, tree_depth: int) -> Candidates:
        """For a tree of so many nodes: the longer the match, the further it is trusted."""
        self._matcher.follow(text)
        length, _ = self._matcher.match()
        most = min(2 * length, tree_size // _SHARE) if length >= LEAST_MATCH else 0
        return Candidates(self._matcher.continuation(most + tree_depth) if most else [], most)


def with_candidates(drawn: DraftTree, candidates: Candidates) -> DraftTree:
    """The tree with the candidates below it: from where no drawn node holds the next of them, as a chain.

    They are chosen by looking at the text and at drawn tokens, never at the target's: matched once the drawn nodes
    have been tested, they keep the distribution exact.
    """
    tree, node, place = drawn.tree, 0, 0
    children: dict[tuple[int, int], int] = {}
    for child in range(tree.size - 1, 0, -1):
        children[tree.parents[child], drawn.tokens[child]] = child
    while place < len(candidates.tokens) and (node, candidates.tokens[place]) in children:
        node = children[node, candidates.tokens[place]]
        place += 1
    chain = candidates.tokens[place : place + candidates.most]
    if not chain:
        return drawn
    parents = [node, *range(tree.size, tree.size + len(chain) - 1)]
    none = np.full(len(chain), -1)
    return replace(
        drawn,
        tree=Tree([*tree.parents, *parents]),
        tokens=[*drawn.tokens, *chain],
        columns=np.concatenate((drawn.columns, none)),
        distribution_rows=np.concatenate((drawn.distribution_rows, none)),
    )
