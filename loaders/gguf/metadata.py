"""A model's metadata, checked as they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from loaders.errors import ModelFilesError
from loaders.gguf.header import GgufFile


@dataclass(frozen=True)
class Metadata:
    """The values under the architecture's prefix."""

    gguf: GgufFile
    prefix: str

    def integer(self, name: str, default: int | None = None) -> int:
        value: int = self.gguf.get(f"{self.prefix}.{name}", int, default)
        if not 0 < value < 1 << 31:
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} is {value}, but must be a positive number.")
        return value

    def real(self, name: str, default: float | None = None, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number within the bounds, which are far wider than real models need."""
        value: float = self.gguf.get(f"{self.prefix}.{name}", float, default)
        if not (math.isfinite(value) and least <= value <= most):
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} is {value:.6g}, which no model has.")
        return value

    def optional(self, name: str) -> Any:
        return self.gguf.metadata.get(f"{self.prefix}.{name}")

    @property
    def head_dim(self) -> int:
        heads, width = self.integer("attention.head_count"), self.integer("embedding_length")
        return self.integer("attention.key_length", max(width // heads, 1))
