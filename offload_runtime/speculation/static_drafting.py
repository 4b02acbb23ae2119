"""Drafts the tokens of a tree of fixed shape, level by level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offload_runtime.speculation.draft import Draft, Growth, draft_distribution, joined
from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.drafting.end_tokens import Endings
from sequoia_tree.shaping.contexts import Text
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload_together
from sequoia_tree.verification.sampling import highest_tokens

Drawing = Callable[[Tensor, int, torch.Generator], Tensor]
"""Children for each row of log-probs [m, V]: int64 [m, count] in the order drawn, -1 where there is none."""


@dataclass(frozen=True)
class Level:
    """The nodes of one depth that have children, and where the drawn tokens go. Tensors are int64 except the masks.

    parents [p]: those nodes. visible: bool [p, columns], which of the draft's uncommitted rows each sees; rows of
    its own level come last. depths [columns]: of those rows. ancestors: bool [p, n], each parent and its ancestors.
    children, child_rows, child_numbers [c]: child node, its parent's index in `parents`, its rank among its siblings
    (from 0). width: most children of a parent.
    """

    width: int
    parents: Tensor
    visible: Tensor
    depths: Tensor
    ancestors: Tensor
    children: Tensor
    child_rows: Tensor
    child_numbers: Tensor


class StaticDrafting:
    """Drafts a token for every node of one tree, after any text. drawing: draws children above temperature 0."""

    def __init__(self, draft: Draft, tree: Tree, drawing: Drawing):
        self.tree = tree
        self._draft, self._drawing = draft, drawing
        self._endings = Endings(draft.model.device)
        self._levels = _levels(tree, draft.root_is_text, draft.model.device)
        inner = _inner_nodes(tree)
        self._distribution_rows = np.full(tree.size, -1)
        self._distribution_rows[inner] = np.arange(len(inner))
        # The root's row belongs to the text.
        self._columns = np.where(self._distribution_rows > 0, self._distribution_rows - 1, -1)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each draft pass."""
        return tuple(len(level.parents) for level in self._levels)

    def growing(
        self,
        text: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
        sequence: int = 0,
        ends: frozenset[int] = frozenset(),
    ) -> Growth[DraftTree]:
        """The tree with its tokens; the root is the last of `text`.

        Nodes for which no token was left, and those behind one of `ends`, are removed. The host waits for the device
        once, for the tokens.
        """
        draft = self._draft
        known = Text.of(text, draft.model.device) if sampling.rules else None
        tokens = torch.full((self.tree.size,), text[-1], device=draft.model.device)
        logits = yield from draft.reading(text, sequence)
        ending = self._endings.table(ends, logits.shape[-1])
        distributions = []
        for depth, level in enumerate(self._levels):
            if depth > 0:
                parents = tokens[level.parents]
                logits = yield draft.nodes(parents, level.depths, level.visible, sequence)
            contexts = known.at(level.ancestors, tokens, depth) if known else None
            distributions.append(draft_distribution(logits, sampling, contexts))
            children = self._children(distributions[-1], level.width, sampling, generator)
            if depth > 0:
                children = children.masked_fill(ending[parents][:, None], -1)
            tokens[level.children] = children[level.child_rows, level.child_numbers]
        return self._without_missing(tokens.tolist(), joined(distributions, sampling) if distributions else None)

    def _children(self, distribution: Tensor, width: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        return (
            self._drawing(distribution, width, generator)
            if sampling.temperature
            else likeliest(distribution, width, generator)
        )

    def _without_missing(self, tokens: list[int], distributions: Tensor | None) -> DraftTree:
        alive = [token >= 0 for token in tokens]
        if all(alive):
            return DraftTree(self.tree, tokens, len(tokens), self._columns, distributions, self._distribution_rows)
        tree, kept = self.tree.prune(alive)
        distribution_rows = np.where(tree.child_count_array > 0, self._distribution_rows[kept], -1)
        return DraftTree(
            tree, [tokens[node] for node in kept], tree.size, self._columns[kept], distributions, distribution_rows
        )


def likeliest(distribution: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The `count` likeliest tokens per row of log-probs ``[m, V]``, likeliest first; -1 where fewer are possible."""
    return highest_tokens(distribution, count)


def _inner_nodes(tree: Tree) -> NDArray[np.int64]:
    """The nodes that have children, by depth: the order in which the draft runs over them."""
    inner = np.flatnonzero(tree.child_count_array)
    return inner[np.argsort(tree.depth_array[inner], kind="stable")]


def _levels(tree: Tree, root_is_text: bool, device: torch.device) -> list[Level]:
    """By one upload for all of them: a tree is made anew whenever the choice of it changes."""
    inner = _inner_nodes(tree)
    ancestors = tree.ancestor_mask()
    arrays, widths = [], []
    for depth in range(tree.depth):
        parents = inner[tree.depth_array[inner] == depth]
        columns = inner[(tree.depth_array[inner] <= depth) & (inner >= root_is_text)]
        children = np.flatnonzero(np.isin(tree.parent_array, parents))
        rows = np.searchsorted(parents, tree.parent_array[children])
        numbers = tree.child_number_array[children] - 1
        visible, depths = ancestors[parents][:, columns], tree.depth_array[columns]
        arrays.append((parents, visible, depths, ancestors[parents], children, rows, numbers))
        widths.append(int(numbers.max()) + 1)
    tensors = iter(upload_together([array for level in arrays for array in level], device)) if arrays else iter(())
    return [Level(width, *(next(tensors) for _ in level)) for level, width in zip(arrays, widths)]
