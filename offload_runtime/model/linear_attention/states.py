"""The states of recurrent layers: of each text, what the nodes of its tree add, and what it can go back to.

transformers' modules run unchanged: they see a cache layer without state, and call functions that know it (`wrappers`).
What a tree's nodes add is kept until verification has chosen a path; the state after it follows without another pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from offload_runtime.model.linear_attention.snapshots import Snapshots
from offload_runtime.model.linear_attention.writes import Writes
from offload_runtime.model.rows import PassRows
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class LayerState:
    """The state of one layer after some text. inputs: the last inputs of each convolution, [1, channels, kernel - 1].
    memory: [heads, k, v], None for convolutions alone. Empty before the first token."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None


@dataclass
class Pending:
    """What a layer computed for rows that are not committed. after_text: the state after the pass's rows of text.

    inputs: of each convolution, [1, channels, nodes]. written: by all nodes.
    """

    after_text: LayerState
    inputs: dict[int, Tensor] = field(default_factory=dict)
    written: Writes | None = None


@dataclass(frozen=True)
class Branches:
    """The nodes of one text's tree so far: those of this pass are the last `count`.

    chain: rows of text before them in this pass. visible: bool [count, nodes], as of `PassRows`. parents: int64
    [nodes], the node that each continues; -1 for the text. of_prompt: bool [count], whether a node is a token of the
    prompt: its last one is the root of the first tree.
    """

    chain: int
    count: int
    visible: Tensor
    parents: Tensor
    of_prompt: Tensor

    def windows(self, kernel: int) -> Tensor:
        """int64 [count, kernel]: for each node of the pass, the columns that its convolution sees, itself last.

        Counted from the first node: -1 is the last input of the text.
        """
        nodes = torch.arange(len(self.parents) - self.count, len(self.parents), device=self.parents.device)
        columns = [nodes]
        for _ in range(kernel - 1):
            before = columns[-1]
            columns.append(torch.where(before >= 0, self.parents[before.clamp(min=0)], before - 1))
        return torch.stack(columns[::-1], dim=1)


class BranchingLayer(LinearAttentionLayer):
    """The states of one layer, of each text by its number. transformers' code sees no state: the wrappers know it.

    differs: whether transformers computes the tokens of a prompt otherwise than those that it writes.
    """

    def __init__(self, sequences: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.differs = False
        self.record_past = True  # otherwise a pass over one row takes another way
        self.states = [LayerState() for _ in range(sequences)]
        self.pending: list[Pending | None] = [None] * sequences

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        current = _current.get(None)
        assert current is not None, "a layer that branches runs in passes of this runtime only"
        current.layer, current.convolution = self, state_idx
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        return recurrent_states

    def begin(self, number: int) -> Pending:
        """What is pending of a text."""
        pending = self.pending[number]
        if pending is None:
            state = self.states[number]
            pending = self.pending[number] = Pending(LayerState(dict(state.inputs), state.memory))
        return pending

    def commit(self, number: int, path: Tensor | None) -> None:
        """Keep the rows of text, and the nodes `path`, int64 [p], of what is pending of a text."""
        pending, self.pending[number] = self.pending[number], None
        if pending is None:
            return
        state = pending.after_text
        if path is not None:
            inputs = {
                convolution: torch.cat((state.inputs[convolution], nodes.index_select(2, path)), dim=2)[
                    :, :, -state.inputs[convolution].shape[2] :
                ]
                for convolution, nodes in pending.inputs.items()
            }
            written, memory = pending.written, state.memory
            memory = memory if written is None or memory is None else written.state_after(memory, path)
            state = LayerState(inputs, memory)
        self.states[number] = state


@dataclass
class CurrentPass:
    """texts: for each, its rows in the pass, its number, and its branches. layer, convolution: those that run now."""

    texts: Sequence[tuple[slice, int, Branches]]
    layer: BranchingLayer | None = None
    convolution: int = 0


_current: ContextVar[CurrentPass] = ContextVar("current_linear_pass")


class SequenceStates:
    """The states of one text in all layers: its branches, and snapshots to go back to."""

    def __init__(self, layers: Sequence[BranchingLayer], number: int):
        self._layers, self._number = layers, number
        self._prompt = sys.maxsize  # tokens that were given, not written
        self._branches: Branches | None = None
        self.snapshots: Snapshots[list[LayerState]] = Snapshots()

    def branches(self, rows: PassRows) -> Branches:
        """Those of a pass over these rows, which the next pass over the same tree continues."""
        before, chain = self._branches, rows.chain
        assert before is None or not chain or not len(before.parents), "text does not follow a tree"
        visible, positions = rows.visible[chain:, chain:], rows.positions[chain:]
        own = torch.zeros_like(visible)
        own[:, visible.shape[1] - visible.shape[0] :] = torch.eye(len(visible), dtype=torch.bool, device=own.device)
        depths = torch.where(visible & ~own, positions[None, :] + 1, 0)
        if depths.shape[1]:
            deepest, parents = depths.max(dim=1)
            parents = torch.where(deepest > 0, parents, -1)
        else:
            parents = positions.new_empty(0)
        known = parents if before is None or chain else torch.cat((before.parents, parents))
        self._branches = Branches(chain, len(visible), visible, known, rows.row_positions[chain:] < self._prompt)
        return self._branches

    def commit(self, length: int, rows: Sequence[int]) -> None:
        """Keep some uncommitted rows, after `length` committed ones."""
        branches, self._branches = self._branches, None
        if branches is None:
            return
        chain = branches.chain
        assert not rows or list(rows[:chain]) == list(range(chain)), "all text of a pass is kept, or nothing"
        if not rows and chain:
            self._drop()
            return
        if chain and self._layers[0].pending[self._number] is not None:
            states = [pending.after_text for layer in self._layers if (pending := layer.pending[self._number])]
            self._keep(length + chain, states)
        nodes = [row - chain for row in rows[chain:]]
        path = upload(nodes, branches.parents.device) if nodes else None
        for layer in self._layers:
            layer.commit(self._number, path)
        self._keep(length + len(rows), self._now())

    def rollback(self) -> None:
        """Drop what is not committed."""
        self._branches = None
        self._drop()

    def begin(self, prompt: int, length: int, common: int) -> int:
        """A text with a prompt of `prompt` tokens begins like the `length` committed ones, for `common` tokens.

        If it goes on from their end, another may come back to there. Returns how many of them can be used: what was
        written is part of the prompt now.
        """
        common = min(common, self._usable)
        self._prompt = prompt
        if 0 < length <= common:
            self.snapshots.add(length, self._now(), ends_turn=True)
        return common

    def truncate(self, length: int, to: int) -> int:
        """Go back from `length` committed tokens to at most `to`; returns how many are left."""
        self.rollback()
        if to >= length:
            return length
        snapshot = self.snapshots.back_to(to)
        states = snapshot.states if snapshot else [LayerState()] * len(self._layers)
        for layer, state in zip(self._layers, states):
            layer.states[self._number] = state
        return snapshot.length if snapshot else 0

    def take_from(self, other: SequenceStates, length: int) -> int:
        """Begin like another text: with its longest snapshot of at most `length` tokens, and those before it."""
        self.rollback()
        self.snapshots.take_from(other.snapshots)
        self._prompt = other._prompt
        return self.truncate(sys.maxsize, min(length, self._usable))

    @property
    def _usable(self) -> int:
        """Tokens after which a state is that of a prompt."""
        return self._prompt if any(layer.differs for layer in self._layers) else sys.maxsize

    def _keep(self, length: int, states: list[LayerState]) -> None:
        """The last token of a prompt is read as the root of a tree, or with the prompt."""
        self.snapshots.add(length, states, ends_turn=length in (self._prompt - 1, self._prompt))

    def _now(self) -> list[LayerState]:
        return [layer.states[self._number] for layer in self._layers]

    def _drop(self) -> None:
        for layer in self._layers:
            layer.pending[self._number] = None


def current_pass() -> CurrentPass | None:
    """The pass that runs in this thread; None outside of passes."""
    return _current.get(None)


@contextmanager
def linear_pass(texts: Sequence[tuple[slice, int, Branches]]) -> Iterator[None]:
    """Within the block, wrapped functions follow these branches."""
    token = _current.set(CurrentPass(texts))
    try:
        yield
    finally:
        _current.reset(token)
