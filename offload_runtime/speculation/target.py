"""The target: one pass over the text that it has not read yet, followed by a whole tree."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_and_tree_rows
from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class _TreeShape:
    """A tree on the device: ancestors bool [n, n], depths int64 [n]."""

    tree: Tree
    ancestors: Tensor
    depths: Tensor

    @classmethod
    def of(cls, tree: Tree, device: torch.device) -> "_TreeShape":
        return cls(tree, upload(tree.ancestor_mask(), device), upload(tree.depth_array, device))


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
    """The work of one `score` call, and when it began."""

    tokens: int
    passes: int
    layers_before: int
    began: float


class Target:
    """Scores trees. Its cache holds a prefix of the text; the pass over the tree also reads the rest.

    most_rows: most rows of one pass; a longer text is read in several. text_rows: rows of text in the latest pass,
    including the root.
    """

    def __init__(self, model: Model, most_rows: int):
        self.model = model
        self._most_rows = most_rows
        self.text_rows = 1
        self._shape: _TreeShape | None = None
        self._step: _Step | None = None

    @property
    def progress(self) -> PassProgress | None:
        """Progress of the current step, None between steps; for other threads."""
        step, model = self._step, self.model
        if step is None:
            return None
        begun, seconds = model.layers_begun - step.layers_before, time.perf_counter() - step.began
        return PassProgress(step.tokens, step.passes, step.passes * model.layers, begun, seconds)

    @torch.inference_mode()
    def score(self, text: Sequence[int], drawn: DraftTree) -> Tensor:
        """Float logits ``[n, vocab]`` after every node of the tree, whose root is the last token of `text`."""
        cache, nodes = self.model.cache, drawn.tree.size
        cache.truncate(len(text) - 1)
        surplus = len(text) - cache.length + nodes - 1 - self._most_rows
        passes = 1 + max(0, -(-surplus // self._most_rows))
        self._step = _Step(len(text) - cache.length, passes, self.model.layers_begun, time.perf_counter())
        try:
            return self._score(text, drawn, surplus)
        finally:
            self._step = None

    def _score(self, text: Sequence[int], drawn: DraftTree, surplus: int) -> Tensor:
        """surplus: tokens of the text that are read in earlier passes; none if it is not positive."""
        cache, nodes = self.model.cache, drawn.tree.size
        if surplus > 0:
            self.model.read(text[cache.length : cache.length + surplus], self._most_rows)
        unread = text[cache.length :]
        self.text_rows = len(unread)
        if self._shape is None or self._shape.tree is not drawn.tree:  # a static tree stays for many passes
            self._shape = _TreeShape.of(drawn.tree, self.model.device)
        tokens = upload([*unread, *drawn.tokens[1:]], self.model.device)
        rows = text_and_tree_rows(cache.length, len(unread), self._shape.ancestors, self._shape.depths)
        return self.model.forward(tokens, rows, logits_to_keep=nodes)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows of the text and of the accepted nodes."""
        before_root = self.text_rows - 1
        self.model.cache.commit([*range(self.text_rows), *(before_root + node for node in path)])
