"""Parents with their children as index tensors, so that rules can process many nodes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class SiblingGroup:
    """m parents, those with the most children first, and their children.

    parents: int64 [m]. children: int64 [m, most children], in drawing order, 0 beyond a parent's last child.
    having: for each child number from 1 on, how many parents have at least that many children.
    """

    parents: Tensor
    children: Tensor
    having: list[int]

    def tokens(self, of_nodes: Tensor) -> Tensor:
        """int64 [m, most children]: the children's tokens, the first child's beyond the last; of_nodes int64 [n]."""
        return of_nodes[torch.where(self.present, self.children, self.children[:, :1])]

    @property
    def present(self) -> Tensor:
        """bool [m, most children]: which entries of `children` are children."""
        return self.children > 0  # no child is the root


def families(tree: Tree, parents: NDArray[np.int64], most: int, device: torch.device) -> Iterator[SiblingGroup]:
    """The given nodes as families of at most `most` parents each; nodes without children are left out."""
    counts = tree.child_count_array[parents]
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    parents, counts = parents[order], counts[order]
    first = tree.first_places[parents]
    for begin in range(0, len(parents), most):
        piece = slice(begin, begin + most)
        numbers = np.arange(counts[begin])
        present = numbers < counts[piece, None]
        places = np.where(present, first[piece, None] + numbers, 0)
        children = np.where(present, tree.by_parent[places], 0)
        yield SiblingGroup(
            upload(parents[piece], device),
            upload(children, device),
            present.sum(axis=0).tolist(),
        )
