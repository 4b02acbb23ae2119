"""Which tokens a repetition penalty punishes at each node of a tree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sequoia_tree.uploads import upload


class SeenTokens:
    """The distinct tokens of a text; a node has seen these and the tokens on its path from the root."""

    def __init__(self, text: Sequence[int], device: torch.device):
        self._text = upload(sorted(set(text)), device)

    def at(self, paths: Tensor) -> Tensor:
        """Token ids ``[n, tokens]`` seen at n nodes; ``paths [n, depth]`` are the tokens on the way to each."""
        return torch.cat((self._text.expand(len(paths), -1), paths), dim=1)
