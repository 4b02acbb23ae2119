"""What a head has to agree with: sizes of the target that it drafts for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.checkpoint.spec import ModelSpec
from loaders.errors import DraftMismatchError, ModelFilesError


@dataclass(frozen=True)
class TargetFacts:
    """Sizes of the target: its name for messages, layers, hidden size, and vocabulary."""

    name: str
    layers: int
    hidden_size: int
    vocab_size: int

    @classmethod
    def of(cls, spec: ModelSpec) -> TargetFacts:
        return cls(spec.name, len(spec.layers), spec.hidden_size, spec.vocab_size)


def check_sizes(file: Path, target: TargetFacts, hidden_size: int, vocab_size: int) -> None:
    """Raise DraftMismatchError, with both numbers, unless a head was made for models of the target's sizes."""
    for what, own, needed in (
        ("hidden states of width", hidden_size, target.hidden_size),
        ("a vocabulary of", vocab_size, target.vocab_size),
    ):
        if own != needed:
            raise DraftMismatchError(
                f"{file}: the head was made for {what} {own:,}, {target.name} has {needed:,}. It belongs to another "
                "model.\n  --draft auto   takes the best draft that is here"
            )


def check_taps(file: Path, taps: tuple[int, ...], target: TargetFacts) -> tuple[int, ...]:
    """The taps: hidden states after so many layers. Raises ModelFilesError for layers that the target does not have."""
    if not taps or min(taps) < 1 or max(taps) > target.layers:
        raise ModelFilesError(
            f"{file}: the head reads the hidden states after layers {', '.join(map(str, taps)) or 'none'}, but "
            f"{target.name} has {target.layers} layers."
        )
    return taps
