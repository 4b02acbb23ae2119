"""The target: one pass over the text that it has not read yet, followed by a whole tree."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from offload_runtime.model.model import Model
from offload_runtime.model.pass_part import PassPart, run_parts, text_part
from offload_runtime.model.rows import text_and_tree_rows
from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload, upload_together


@dataclass(frozen=True)
class _TreeShape:
    """A tree on the device: ancestors bool [n, n], depths int64 [n]."""

    tree: Tree
    ancestors: Tensor
    depths: Tensor

    @classmethod
    def of(cls, tree: Tree, device: torch.device) -> "_TreeShape":
        return cls(tree, *upload_together([tree.ancestor_mask(), tree.depth_array], device))


@dataclass(frozen=True)
class PassProgress:
    """Progress of the target within one step, for display.

    tokens: tokens of text to read, including the tree's root. passes: passes that this takes. layers: layers of all
    these passes together; layers_begun: how many of them have begun. seconds: since the first began.
    """

    tokens: int
    passes: int
    layers: int
    layers_begun: int
    seconds: float

    @property
    def share(self) -> float:
        """Share of the layers that are done, from 0 to below 1."""
        return max(0, self.layers_begun - 1) / self.layers

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the pace so far; None until there is enough of it."""
        if self.seconds < 1 or self.share < 0.05:
            return None
        return self.seconds * (1 / self.share - 1)


@dataclass(frozen=True)
class _Step:
    """The work of one step, and when it began."""

    tokens: int
    passes: int
    layers_before: int
    began: float


@dataclass
class _SequenceState:
    """What is kept of a text. text_rows: its rows of text in the latest pass, the root among them."""

    text_rows: int = 1
    shape: _TreeShape | None = None  # a static tree stays for many passes


class Target:
    """Scores trees. Its cache holds prefixes of texts; the pass over a tree also reads the rest of its text.

    most_rows: most rows of one pass; a longer text is read in several.
    """

    def __init__(self, model: Model, most_rows: int):
        self.model, self.most_rows = model, most_rows
        self._states = [_SequenceState() for _ in model.cache.sequences]
        self._step: _Step | None = None

    @property
    def progress(self) -> PassProgress | None:
        """Progress of the current step, None between steps; for other threads."""
        step, model = self._step, self.model
        if step is None:
            return None
        begun, seconds = model.layers_begun - step.layers_before, time.perf_counter() - step.began
        return PassProgress(step.tokens, step.passes, step.passes * model.layers, begun, seconds)

    def text_rows(self, sequence: int = 0) -> int:
        """Rows of text in the latest pass over this sequence, the root among them."""
        return self._states[sequence].text_rows

    @torch.inference_mode()
    def score(
        self,
        text: Sequence[int],
        drawn: DraftTree,
        sequence: int = 0,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Float logits ``[n, vocab]`` after every node of the tree, whose root is the last token of `text`.

        between: called after every pass that only reads, before the next one.
        """
        cached = self.model.cache.sequences[sequence]
        cached.truncate(len(text) - 1)
        surplus = max(0, len(text) - cached.length + drawn.tree.size - 1 - self.most_rows)
        passes = 1 + -(-surplus // self.most_rows)
        with self._stepping(len(text) - cached.length, passes):
            end = cached.length + surplus
            while cached.length < end:
                self.model.read(text[cached.length : end][: self.most_rows], self.most_rows, sequence)
                if between:
                    between()
            part = self.tree_part(text, drawn, sequence)
            return self.model.forward(part.tokens, part.rows, part.wanted)

    @torch.inference_mode()
    def run(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits of each part, all of one pass."""
        with self._stepping(sum(part.rows.count - max(part.wanted - 1, 0) for part in parts), 1):
            return run_parts(self.model, parts, self.most_rows)

    def tree_part(self, text: Sequence[int], drawn: DraftTree, sequence: int = 0) -> PassPart:
        """The tokens of `text` that are not cached yet, then the tree; logits are wanted at its nodes."""
        cached, state = self.model.cache.sequences[sequence], self._states[sequence]
        cached.truncate(len(text) - 1)
        unread = text[cached.length :]
        state.text_rows = len(unread)
        if state.shape is None or state.shape.tree is not drawn.tree:
            state.shape = _TreeShape.of(drawn.tree, self.model.device)
        tokens = upload([*unread, *drawn.tokens[1:]], self.model.device)
        ancestors, depths = state.shape.ancestors, state.shape.depths
        rows = text_and_tree_rows(cached.length, len(unread), ancestors, depths, cached.first_row)
        return PassPart(tokens, rows, drawn.tree.size)

    def text_part(self, text: Sequence[int], most: int, sequence: int) -> PassPart:
        """The next `most` tokens of `text` that are not cached yet, to be read only."""
        begin = self.model.cache.sequences[sequence].length
        return text_part(self.model, text[begin : begin + most], sequence, wanted=0)

    def commit(self, path: Sequence[int], sequence: int = 0) -> None:
        """Keep the rows of the text and of the accepted nodes."""
        text_rows = self._states[sequence].text_rows
        rows = [*range(text_rows), *(text_rows - 1 + node for node in path)]
        self.model.cache.sequences[sequence].commit(rows)

    @contextmanager
    def _stepping(self, tokens: int, passes: int) -> Iterator[None]:
        self._step = _Step(tokens, passes, self.model.layers_begun, time.perf_counter())
        try:
            yield
        finally:
            self._step = None
