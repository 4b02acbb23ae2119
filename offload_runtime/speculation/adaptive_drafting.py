"""Drafts a tree that fits the context, in expansion steps towards nodes that the draft's distributions make likely."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from offload_runtime.model.pass_part import PassPart
from offload_runtime.speculation.draft import Draft, Growth, draft_distribution, joined
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.lookup.text_candidates import RepeatedText, with_candidates
from offload_runtime.speculation.static_drafting import likeliest
from sequoia_tree.drafting.adaptive import Frontier, Grown
from sequoia_tree.drafting.end_tokens import Endings
from sequoia_tree.shaping.contexts import Contexts, Text
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.tree import Tree
from sequoia_tree.verification.sampling import draw_without_replacement

Costs = Callable[[Tensor, Tensor], Tensor]
"""Decrease of log-priority from parent to child: float [m, K], ascending, from log-probs [m, V] and tokens [m, K]."""


class AdaptiveDrafting:
    """Trees of at most `size` nodes and `depth` levels; a few of the nodes come from n-gram lookup in the text.

    The draft runs over the root and then does depth - 1 expansion steps. Together they expand about as many nodes as
    the tree will have. That is more than its inner nodes, so the best ones are among them.
    """

    def __init__(self, draft: Draft, size: int, depth: int, children: int):
        assert size >= 2 and 1 <= depth < size
        self._draft, self._size, self._children = draft, size, children
        self._expansions, self._first_row = depth - 1, int(draft.root_is_text)
        self._width = max(1, (size - 1) // max(1, self._expansions))
        self._endings = Endings(draft.model.device)
        self._by_sequence: dict[int, tuple[Frontier, RepeatedText]] = {}

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each draft pass."""
        return (1, *[self._width] * self._expansions)

    def growing(
        self,
        text: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
        sequence: int,
        ends: frozenset[int],
        costs: Costs,
    ) -> Growth[DraftTree]:
        """The best nodes under `text`, whose last token is the root; none is behind one of `ends`."""
        draft, (frontier, repeated) = self._draft, self._state(sequence)
        known = Text.of(text, draft.model.device) if sampling.rules else None
        draw = draw_without_replacement if sampling.temperature else likeliest
        logits = yield from draft.reading(text, sequence)
        frontier.restart(text[-1], self._endings.table(ends, logits.shape[-1]))
        distributions = []
        for expansion in range(self._expansions + 1):
            if expansion > 0:
                frontier.expand()
                logits = yield self._expansion(frontier, sequence)
            contexts = _contexts(frontier, known, expansion) if known else None
            distributions.append(draft_distribution(logits, sampling, contexts))
            tokens = draw(distributions[-1], frontier.children, generator)
            frontier.open(tokens, costs(distributions[-1], tokens))
        candidates = repeated.candidates(text, self._size, self._expansions + 1, ends)
        grown = frontier.best(self._size - 1 - candidates.most)
        return with_candidates(_draft_tree(grown, joined(distributions, sampling)), candidates)

    def _state(self, sequence: int) -> tuple[Frontier, RepeatedText]:
        """Texts that share passes are grown side by side, so each needs a frontier of its own."""
        if sequence not in self._by_sequence:
            frontier = Frontier(self._expansions, self._width, self._children, self._draft.model.device)
            self._by_sequence[sequence] = frontier, RepeatedText()
        return self._by_sequence[sequence]

    def _expansion(self, frontier: Frontier, sequence: int) -> PassPart:
        new, tree = slice(frontier.begin, frontier.end), slice(self._first_row, frontier.end)
        return self._draft.nodes(frontier.tokens[new], frontier.depths[tree], frontier.ancestors[new, tree], sequence)


def _contexts(frontier: Frontier, text: Text, expansions: int) -> Contexts:
    """For the nodes of the current expansion step; their depth is at most `expansions`."""
    tree = slice(0, frontier.end)
    return text.at(frontier.ancestors[frontier.begin : frontier.end, tree], frontier.tokens[tree], expansions)


def _draft_tree(grown: Grown, distributions: Tensor) -> DraftTree:
    tree, expanded = Tree(grown.parents), np.array(grown.expanded)
    distribution_rows = np.where(tree.child_count_array > 0, expanded, -1)
    columns = np.where(expanded > 0, expanded - 1, -1)  # the root's row belongs to the text
    return DraftTree(tree, grown.tokens, tree.size, columns, distributions, distribution_rows)
