"""Candidates by n-gram lookup: where the text repeats itself, the earlier continuation is added to the tree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.drafting.end_tokens import up_to_end
from sequoia_tree.drafting.suffix import SuffixMatcher
from sequoia_tree.tree import Tree

LEAST_MATCH = 4  # tokens in a row that must have occurred before; shorter matches happen by chance
_SHARE = 8  # at most one node in so many is a candidate, which bounds what chance matches cost


@dataclass(frozen=True)
class Candidates:
    """`tokens` that may follow the text; at most `most` of them become new nodes."""

    tokens: list[int]
    most: int


class RepeatedText:
    """Looks up the end of a growing text in the text before it."""

    def __init__(self) -> None:
        self._matcher = SuffixMatcher()

    def candidates(
        self, text: Sequence[int], tree_size: int, tree_depth: int, ends: frozenset[int] = frozenset()
    ) -> Candidates:
        """Candidates for a tree of `tree_size` nodes, up to one of `ends`: the longer the match, the more of them."""
        self._matcher.follow(text)
        length, _ = self._matcher.match()
        most = min(2 * length, tree_size // _SHARE) if length >= LEAST_MATCH else 0
        tokens = up_to_end(self._matcher.continuation(most + tree_depth), ends) if most else []
        return Candidates(tokens, min(most, len(tokens)))


def with_candidates(drawn: DraftTree, candidates: Candidates) -> DraftTree:
    """The tree with the candidates added as a chain, below the longest path of drawn nodes that matches them.

    The choice depends on the text and the drawn tokens, never on the target's distribution. So matching them after the
    drawn nodes have been tested keeps the output distribution exact.
    """
    tree, node, matched = drawn.tree, 0, 0
    children: dict[tuple[int, int], int] = {}
    for child in range(tree.size - 1, 0, -1):
        children[tree.parents[child], drawn.tokens[child]] = child
    while matched < len(candidates.tokens) and (node, candidates.tokens[matched]) in children:
        node = children[node, candidates.tokens[matched]]
        matched += 1
    chain = candidates.tokens[matched : matched + candidates.most]
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
