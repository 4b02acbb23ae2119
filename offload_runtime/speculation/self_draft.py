"""The target as its own draft: a low-bit copy that reads the target's KV rows and writes rows that the pass replaces.

So it has no prompt to read, no rows of its own, and its distributions are those of the copy after rows that the target
itself has computed. A draft may use any distribution, so exactness does not depend on it; what it must not do is leave
a row of its own in the text. Its rows are never committed: the pass over the tree begins by dropping them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from offload_runtime.model.low_bits.self_drafting import SelfDraftingModel
from offload_runtime.model.pass_part import PassPart, text_part
from offload_runtime.model.rows import PassRows
from offload_runtime.speculation.draft import Draft, Growth


class SelfDraft(Draft):
    """Drafts where the target has read all of a text but its last token: otherwise it is read without a tree first."""

    model: SelfDraftingModel
    root_is_text = False  # its row must not be that of the copy

    def running(self) -> AbstractContextManager[None]:
        return self.model.drafting()

    def can_follow(self, unread: int, length: int) -> bool:
        return unread <= 1

    @torch.inference_mode()
    def run(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits ``[wanted, vocab]`` of each part; parts of several texts share passes."""
        with self.running():
            return super().run(parts)

    def reading(self, text: Sequence[int], sequence: int = 0) -> Growth[Tensor]:
        """Logits ``[1, vocab]`` after the last token, whose row stays uncommitted."""
        cached = self.model.cache.sequences[sequence]
        cached.truncate(len(text) - 1)
        assert cached.length == len(text) - 1
        return (yield text_part(self.model, text[-1:], sequence, wanted=1))

    def following(self, text: Sequence[int], sequence: int = 0) -> Growth[object]:
        """Nothing: the rows are the target's."""
        return None
        yield  # asks for no pass

    def nodes(self, tokens: Tensor, depths: Tensor, visible: Tensor, sequence: int = 0) -> PassPart:
        """New nodes, as of any draft, after the uncommitted row of the text's last token."""
        cached = self.model.cache.sequences[sequence]
        rows = PassRows(cached.length, cached.length + depths, visible, cached.first_row)
        return PassPart(tokens.clamp(0, self.model.vocab_size - 1), rows, len(tokens))

    def commit(self, columns: Sequence[int], sequence: int = 0) -> None:
        """Nothing: the target has dropped these rows."""
