"""Biases on tokens that would complete a sequence: `sequence_bias`, `bad_words_ids` and biases on single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts


@dataclass(frozen=True, eq=False)
class SequenceBias:
    """single: float32 [V], added everywhere. longer: of sequences of one length each, their beginnings int64 [s, k],
    their last tokens int64 [s] and what these get where the context ends with the beginning, float32 [s].
    """

    single: Tensor
    longer: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, biases: Mapping[tuple[int, ...], float], vocab_size: int, device: torch.device) -> SequenceBias:
        """From biases by sequence, none empty, all tokens inside the vocabulary; -inf forbids."""
        single = torch.zeros(vocab_size)
        groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for sequence, bias in biases.items():
            if len(sequence) == 1:
                single[sequence[0]] = bias
            else:
                groups.setdefault(len(sequence), []).append((sequence, bias))
        return cls(single.to(device), tuple(_group(group, device) for group in groups.values()))

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        if not self.longer:
            return scores + self.single
        bias = self.single.repeat(len(scores), 1)
        for beginnings, last, values in self.longer:
            ends_so = (contexts.last(beginnings.shape[1])[:, None] == beginnings).all(-1)
            bias.index_add_(1, last, torch.where(ends_so, values, 0.0))
        return scores + bias


def _group(group: list[tuple[tuple[int, ...], float]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    sequences = torch.tensor([sequence for sequence, _ in group], device=device)
    values = torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device)
    return sequences[:, :-1], sequences[:, -1], values
