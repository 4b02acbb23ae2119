"""A tree with a token at every node: the input of the target's pass and of verification."""

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
    """The tokens of the first `drawn` nodes were drawn from the draft; those of later nodes were chosen in other ways.

    tokens: one per node; the root's is the last token of the text.
    columns: int64 [n], the row of each node in the draft's cache, counted from the text's end; -1 if not computed.
    distributions: probabilities [rows, vocab] that children were drawn from; at temperature 0, where nothing is drawn,
    log-probabilities without temperature. distribution_rows: int64 [n], the node's row of `distributions`; -1 for nodes
    without drawn children.
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
        """The subtree of the drawn nodes."""
        return self.tree if self.drawn == self.tree.size else Tree(self.tree.parents[: self.drawn])

    @property
    def has_distribution(self) -> bool:
        """Whether the root's distribution exists and is not NaN. The host waits for the device."""
        return self.distributions is not None and not bool(self.distributions[0].isnan().any())

    def draft_columns(self, path: list[int]) -> list[int]:
        """Rows of the draft's cache for the beginning of `path`, as far as it was computed."""
        columns = self.columns[path]
        computed = np.count_nonzero(np.cumprod(columns >= 0))
        return columns[:computed].tolist()

    def contexts(self, text: Text, tokens: Tensor) -> Contexts:
        """The tokens that precede each node's children. The last of `text` is the root. tokens: int64 [n]."""
        return text.at(upload(self.tree.ancestor_mask(), text.tokens.device), tokens, self.tree.depth)
