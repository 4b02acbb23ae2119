"""A DFlash block draft as the draft: one pass gives the distributions of all levels of a tree.

The children of a node at depth d are drawn from the distribution of the block's place d, independently of those of
other nodes; DFlash 2 scores them after the token of the node. So growing a tree takes no further pass. Where a tree is
deeper than the block, the distribution of the last place serves for all levels below: any distribution is exact, as
long as children are drawn from it and tested against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from offload_runtime.model.heads.block_model import BlockModel
from offload_runtime.model.model import Model
from offload_runtime.model.pass_part import PassPart, passes, run_together
from offload_runtime.model.rows import PassRows
from offload_runtime.speculation.draft import Growth
from offload_runtime.speculation.growth import run_growths
from offload_runtime.speculation.heads.head_draft import HeadDraft


@dataclass(frozen=True)
class NodesPart(PassPart):
    """Nodes of a tree, whose logits follow from the block. depths: int64 [n], of each node."""

    depths: Tensor
    sequence: int


@dataclass(frozen=True)
class _Block:
    """logits: [depth, vocab] of each place; states: [depth, hidden]."""

    logits: Tensor
    states: Tensor


class BlockDraft(HeadDraft):
    """Drafts for `target`, whose sequences keep the features of their texts."""

    model: BlockModel

    def __init__(self, model: BlockModel, target: Model, vocab_size: int, most_rows: int):
        super().__init__(model, target, vocab_size, most_rows)
        self._blocks: dict[int, _Block] = {}  # the latest of each sequence

    def can_follow(self, unread: int, length: int) -> bool:
        """As of any head; a text of one token is a block without a text before it."""
        return unread <= 1

    @torch.inference_mode()
    def run(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits of each part; blocks of one length share a pass, and nodes need none."""
        logits: dict[int, Tensor] = {
            number: self._after(part.sequence, part.depths, part.tokens)
            for number, part in enumerate(parts)
            if isinstance(part, NodesPart)
        }
        blocks = [(number, part) for number, part in enumerate(parts) if not isinstance(part, NodesPart)]
        for length, same in groupby(sorted(blocks, key=lambda one: one[1].rows.count), lambda one: one[1].rows.count):
            numbers, alike = zip(*same)
            self.model.module.block_rows = length
            logits |= dict(zip(numbers, self._run_blocks(alike)))
        return [self._fit(logits[number]) for number in range(len(parts))]

    def reading(self, text: Sequence[int], sequence: int = 0) -> Growth[Tensor]:
        """Read a text as far as the target has, then a block after it; logits ``[1, vocab]`` of the first place."""
        self._absorb(text, sequence)
        cached = self._cached(sequence)
        count = min(self.model.module.head.block_size, cached.most_rows - cached.length, self._most_rows)
        visible = torch.ones(count, count, dtype=torch.bool, device=self.model.device)
        positions = torch.arange(cached.length, cached.length + count, device=self.model.device)
        rows = PassRows(cached.length, positions, visible, cached.first_row)
        logits = yield PassPart(self.model.block_tokens(text[-1], count), rows, count)
        cached.rollback()
        return logits

    def following(self, text: Sequence[int], sequence: int = 0) -> Growth[object]:
        """Read along with the target, however far that has come."""
        self._absorb(text, sequence)
        return None
        yield

    def along(self, text: Sequence[int], begin: int, count: int, sequence: int = 0) -> Tensor:
        """As of any head; here a block for each token."""
        ends = range(begin + 1, begin + count + 1)
        return torch.cat([run_growths([self.reading(text[:end], sequence)], self.run)[0] for end in ends])

    def nodes(self, tokens: Tensor, depths: Tensor, visible: Tensor, sequence: int = 0) -> PassPart:
        """New nodes, as of any draft; what they see does not matter."""
        new = len(tokens)
        rows = PassRows(0, depths[-new:], torch.ones(new, new, dtype=torch.bool, device=depths.device))
        return NodesPart(tokens.clamp(0, self.model.vocab_size - 1), rows, new, depths[-new:], sequence)

    def _absorb(self, text: Sequence[int], sequence: int) -> None:
        cached, features = self._cached(sequence), self._features(sequence)
        end = min(len(text) - 1, self._target.cache.sequences[sequence].length)
        cached.truncate(end)
        while cached.length < end:
            count = min(end - cached.length, self._most_rows)
            self.model.absorb(features.of(cached.length, count), sequence)
        features.taken = cached.length

    def _run_blocks(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits of the first place of each; all of a block are kept for the nodes of its tree."""
        first: list[Tensor] = []
        for together in passes(parts, self._most_rows):
            results = run_together(self.model, together)
            states = self.model.module.states
            assert states is not None
            skipped = 0 if self.model.module.head.from_anchor else 1
            for part, logits, own in zip(together, results, states.split([part.rows.count for part in together])):
                sequence = part.rows.first_row // self.model.cache.capacity
                self._blocks[sequence] = _Block(logits[skipped:].clone(), own[skipped:].clone())
                start = torch.zeros(1, dtype=torch.int64, device=self.model.device)
                first.append(self._after(sequence, start, part.tokens[:1]))
        return first

    def _after(self, sequence: int, depths: Tensor, tokens: Tensor) -> Tensor:
        """The logits ``[n, vocab]`` of the children of nodes at `depths` with `tokens`, both int64 [n]."""
        block = self._blocks[sequence]
        places = depths.clamp(max=len(block.logits) - 1)
        return self.model.module.successors(block.logits, block.states, places, tokens)
