"""A draft head as a model: its passes take features beside tokens, and what it computes is kept for the next level."""

from typing import Any

import torch
from torch import Tensor

from loaders.modules.heads import HeadSkeleton
from offload_runtime.model.heads.capture import HiddenStates
from offload_runtime.model.model import Model
from offload_runtime.model.padded_passes import Runner
from offload_runtime.model.rows import PassRows, SharedRows
from scheduler.plan.memory import HeadRows
from scheduler.plan.padding import Padding

Rows = PassRows | SharedRows


class HeadModel(Model):
    """The passes of a head over its own cache. Its row i is token i + 1 of the text, with features of token i.

    The arguments after `buffers`, whose rows the head needs, are those of `Model`.
    """

    def __init__(self, head: HeadSkeleton, buffers: HeadRows, *args: Any):
        super().__init__(*args)
        self.head, memory = head, self._memory
        dtype = head.dtype
        self.own = HiddenStates((head.output,), head.width, buffers.of_pass, dtype, memory)
        texts, columns = len(self.cache.sequences), buffers.columns + 1
        # Of the last token of each text, then of the nodes of its tree, in the order of the cache's columns.
        self.outputs = memory.empty(texts * columns * head.width * dtype.itemsize).view(dtype).view(texts, columns, -1)
        self._padded_features = self.own.rows[:0]

    def give(self, features: Tensor) -> None:
        """Features ``[n, width]`` of the rows of the next pass."""
        self.head.inputs.features = features

    def pad_passes(self, padding: Padding, run: Runner) -> None:
        """As of any model; features come from memory that stays where it is, too."""
        self._padded_features = self.own.rows.new_zeros(padding.widths[-1], self.head.width)
        super().pad_passes(padding, run)

    def forward(self, tokens: Tensor, rows: Rows, logits_to_keep: int | Tensor) -> Tensor:
        """A pass as of any model; without features (where passes are timed) these are zeros."""
        inputs = self.head.inputs
        if inputs.features is None:
            inputs.features = torch.zeros(len(tokens), self.head.width, dtype=self.own.rows.dtype, device=self.device)
        if self.replays and len(tokens) <= len(self._padded_features):
            self._padded_features[: len(tokens)] = inputs.features
            self._padded_features[len(tokens) :].zero_()  # what is not finite there would stay in the scratch row
        try:
            return super().forward(tokens, rows, logits_to_keep)
        finally:
            inputs.features = None

    def project(self, captured: Tensor) -> Tensor:
        """Features ``[n, width]`` from the target's hidden states ``[n, captured]``."""
        return captured if self.head.projected is None else self.head.projected(captured)

    def take_up(self, prompt: int, common: int, sequence: int = 0) -> None:
        """As of any model, but the row before the first new token was read with a token that follows it no more."""
        super().take_up(prompt, max(0, common - 1), sequence)

    def _compute_padded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        given, self.head.inputs.features = self.head.inputs.features, self._padded_features[: len(tokens)]
        try:
            return super()._compute_padded(tokens, positions)
        finally:
            self.head.inputs.features = given  # of a pass that turns out not to be replayable

    def _compute(self, tokens: Tensor, positions: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        return super()._compute(tokens, positions + 1, logits_to_keep)
