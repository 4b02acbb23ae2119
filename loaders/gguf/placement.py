"""Where the values of a GGUF tensor belong in a weight of the model that is stored in another form or in several parts.

Converters split, interleave, transpose and reorder: the experts' gate and up projections, of which transformers makes
one matrix, the halves of DeepSeek's kv_b_proj, the heads of a gated delta rule.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowOrder:
    """Rows of a weight [rows, columns], in the order in which a tensor holds them.

    Of every head, or of the whole weight if there are none, the rows begin:end:step. turned: stored as columns.
    tiles: the rows are of heads in groups of so many; the first heads of all groups are stored first, then the second.
    """

    heads: int = 0
    begin: int = 0
    end: int | None = None
    step: int = 1
    turned: bool = False
    tiles: int = 0
    groups: int = 0  # with tiles: how many groups

    def count(self, rows: int) -> int:
        """How many of `rows` rows of a weight these are; -1 if it cannot be."""
        if self.begin < 0 or rows % max(self.heads, 1):
            return -1
        chosen = len(range(*slice(self.begin, self.end, self.step).indices(rows // max(self.heads, 1))))
        negative = self.end is not None and self.end < self.begin
        if negative or (self.tiles and (self.groups < 1 or chosen % (self.tiles * self.groups))):
            return -1
        return chosen * max(self.heads, 1)


@dataclass(frozen=True)
class Whole:
    """A weight of the model. by_expert: its first dimension counts experts, each of which has such a weight.

    input_major: it is [columns, rows], as transformers keeps the experts of gpt-oss and Llama 4.
    """

    name: str
    shape: tuple[int, ...]
    by_expert: bool = False
    input_major: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns, of one expert; a vector has one column."""
        sizes = self.shape[1:] if self.by_expert else self.shape
        rows, columns = (sizes[0], sizes[-1]) if len(sizes) > 1 else (sizes[0], 1)
        return (columns, rows) if self.input_major else (rows, columns)


@dataclass(frozen=True)
class Part:
    """What a tensor is of a weight."""

    whole: Whole
    placement: RowOrder = RowOrder()
