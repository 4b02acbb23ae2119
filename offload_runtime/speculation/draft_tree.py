"""A tree with a token at every node: what the draft hands to the target's pass and to verification."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts, Text
from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload

_ROOT, _NONE = Tree([-1]), np.array([-1])


@dataclass(frozen=True)
class DraftTree:
    """The first `drawn` nodes have their tokens from the draft; those behind them were chosen in other ways.

    tokens: one per node; the root's is the last token of the text.
    columns: int64 [n], the row of each node in the draft's cache, behind the text; -1 where it was not computed.
    distributions: probabilities [rows, vocab] that children were drawn from. At temperature 0, where nothing is drawn,
    log-probabilities of no temperature. distribution_rows: int64 [n], the node's row of `distributions`; -1 for nodes
    under which nothing was drawn.
    """

    tree: Tree
    tokens: list[int]
    drawn: int
    columns: NDArray[np.int64]
    distributions: Tensor | None
    distribution_rows: NDArray[np.int64]

    @classmethod
    def root_only(cls, token: int) -> "DraftTree":
        """The tree of plain decoding."""
        return cls(_ROOT, [token], 1, _NONE, None, _NONE)

    @property
    def drawn_part(self) -> Tree:
        """The tree of the nodes that the draft drew."""
        return self.tree if self.drawn == self.tree.size else Tree(self.tree.parents[: self.drawn])

    @property
    def has_distribution(self) -> bool:
        """Whether the first row of `distributions` is a distribution, and not NaN; the device is waited for."""
        return self.distributions is not None and not bool(self.distributions[0].isnan().any())

    def draft_columns(self, path: list[int]) -> list[int]:
        """Rows of the draft's cache that hold the beginning of `path`, as far as it was computed."""
        columns = self.columns[path]
        computed = np.count_nonzero(np.cumprod(columns >= 0))
        return columns[:computed].tolist()

    def contexts(self, text: Text, tokens: Tensor) -> Contexts:
        """The tokens before what follows each node, the last of `text` being the root's; tokens: those of all nodes."""
        return text.at(upload(self.tree.ancestor_mask(), text.tokens.device), tokens, self.tree.depth)
