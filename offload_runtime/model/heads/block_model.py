"""A block draft as a model: it caches texts from the target's hidden states alone, and its passes are over blocks."""

import torch
from torch import Tensor

from loaders.heads.dflash import DflashHead
from offload_runtime.model.heads.head_model import HeadModel
from offload_runtime.model.rows import text_rows
from sequoia_tree.uploads import upload


class BlockModel(HeadModel):
    """Its row i of a text is the target's hidden states at token i. The rows of a block are never kept."""

    @property
    def module(self) -> DflashHead:
        """What computes the blocks."""
        model = self.head.skeleton.model
        assert isinstance(model, DflashHead)
        return model

    @torch.inference_mode()
    def absorb(self, states: Tensor, sequence: int) -> None:
        """Append tokens to the text in a sequence of the cache: the target's states at them, [n, captured]."""
        cached = self.cache.sequences[sequence]
        rows = text_rows(cached.length, len(states), self.device, cached.first_row)
        with self.cache.one_pass(rows):
            self.module.absorb(states, rows.row_positions + 1, self.cache)  # as `_compute` counts
        cached.commit(range(len(states)))

    def block_tokens(self, anchor: int, count: int) -> Tensor:
        """int64 [count]: the last token of a text, and mask tokens after it."""
        return upload([anchor, *[self.module.head.mask_token] * (count - 1)], self.device)
