"""What the configs of all heads in files of their own say. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HeadConfig:
    """taps: the hidden states of the target that the head reads, each after so many of its layers.

    layer: the config of the layers as transformers knows it. draft_vocab_size: tokens that it can propose.
    """

    file: Path
    layer: Mapping[str, Any]
    taps: tuple[int, ...]
    draft_vocab_size: int

    @property
    def hidden_size(self) -> int:
        return int(self.layer["hidden_size"])

    @property
    def vocab_size(self) -> int:
        """Of the target."""
        return int(self.layer["vocab_size"])

    @property
    def layers(self) -> int:
        return int(self.layer["num_hidden_layers"])

    @property
    def maps_tokens(self) -> bool:
        """Whether its vocabulary is a part of the target's."""
        return self.draft_vocab_size != self.vocab_size
