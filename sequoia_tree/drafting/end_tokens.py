"""End tokens: the text ends at the first, so no node of a tree comes behind one.

Exact under every rule: whether a node has children depends on its own token, which is drawn before theirs are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from sequoia_tree.uploads import upload


def up_to_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: end + 1])


class Endings:
    """The tokens that no node comes behind, as a table on `device` that is kept while requests name the same ones."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: tuple[frozenset[int], int] | None = None
        self._table = torch.empty(0, dtype=torch.bool, device=device)

    def table(self, ends: frozenset[int], vocab_size: int) -> Tensor:
        """bool [vocab_size + 1], by token id: true for `ends` within the vocabulary, and for -1, a missing token."""
        if self._known != (ends, vocab_size):
            is_end = np.zeros(vocab_size + 1, dtype=np.bool_)
            is_end[[*(token for token in ends if 0 <= token < vocab_size), vocab_size]] = True
            self._known, self._table = (ends, vocab_size), upload(is_end, self._device)
        return self._table
