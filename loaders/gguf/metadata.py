"""A model's metadata, checked as they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from loaders.errors import ModelFilesError
from loaders.gguf.header import GgufArray, GgufFile, GgufTensor

MOST_LAYERS = 1 << 12  # in a list with a number for each


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

    def natural(self, name: str, default: int) -> int:
        """A count, which may be 0."""
        value: int = self.gguf.get(f"{self.prefix}.{name}", int, default)
        if not 0 <= value < 1 << 31:
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} is {value}, which is no count.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value: bool = self.gguf.get(f"{self.prefix}.{name}", bool, default)
        return value

    def reals(self, name: str) -> list[float]:
        """A number for each layer that the text goes through; infinite ones are left to the caller."""
        value = self.optional(name)
        if not isinstance(value, GgufArray) or value.count != self.integer("block_count"):
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} must list a number for each layer.")
        found = self.gguf.items(value)
        if not all(isinstance(each, float) and not math.isnan(each) for each in found):
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} lists {found!r:.60}, which no model has.")
        return found[: self.layers]

    def tensor(self, name: str) -> GgufTensor:
        """Raises ModelFilesError if it is not there."""
        found = self.gguf.tensors.get(name)
        if found is None:
            raise ModelFilesError(f"{self.gguf.file}: it holds no {name}. The file is damaged; download it again.")
        return found

    def integers(self, name: str, default: list[int]) -> list[int]:
        """A list of numbers."""
        value = self.optional(name)
        if value is None:
            return default
        if not isinstance(value, GgufArray) or value.count > MOST_LAYERS:
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} is no list of numbers.")
        found = self.gguf.items(value)
        if not all(type(each) is int and 0 <= each < 1 << 31 for each in found):
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name} lists {found!r:.60}, which no model has.")
        return found

    def optional(self, name: str) -> Any:
        return self.gguf.metadata.get(f"{self.prefix}.{name}")

    @property
    def layers(self) -> int:
        """How many layers the text goes through: not those that predict further tokens, which come last."""
        count, more = self.integer("block_count"), self.natural("nextn_predict_layers", 0)
        if more >= count:
            raise ModelFilesError(f"{self.gguf.file}: {more} of {count} layers are to predict further tokens.")
        return count - more

    @property
    def inner(self) -> int:
        """The width of feed-forward networks, the largest if several; of the experts, where there is nothing else."""
        return max(self.inners)

    @property
    def inners(self) -> list[int]:
        """The width in each layer."""
        name = "feed_forward_length"
        return self.for_each_layer(name if self.optional(name) is not None else f"expert_{name}")

    @property
    def kv_heads(self) -> list[int]:
        """The heads of keys and values in each layer; 0 where there are none."""
        return self.for_each_layer("attention.head_count_kv", self.integer("attention.head_count"))

    def for_each_layer(self, name: str, default: int | None = None) -> list[int]:
        """A number for each layer, or one for all. Raises ModelFilesError, also if none is positive."""
        count = self.integer("block_count")
        if not isinstance(self.optional(name), GgufArray):
            return [self.integer(name, default)] * min(count, MOST_LAYERS)
        found = self.integers(name, [])
        if len(found) != count or not any(found):
            raise ModelFilesError(f"{self.gguf.file}: {self.prefix}.{name}: {len(found)} numbers for {count} layers.")
        return found

    @property
    def head_dim(self) -> int:
        heads, width = self.integer("attention.head_count"), self.integer("embedding_length")
        return self.integer("attention.key_length", max(width // heads, 1))
