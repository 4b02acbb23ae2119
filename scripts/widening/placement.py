"""Where the parts of a small Llama lie inside a large one, and what has to be rescaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from offload_runtime.errors import UnsupportedModelError, UsageError

ROTATIONS = ("default", "linear", "llama3")  # a pair's speed depends on its own frequency alone

CONFIG_NAMES = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama without its vocabulary. Raises UsageError for sizes that make no model."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise UsageError(
                f"{self.heads} heads cannot share {self.kv_heads} key heads evenly, or {self.head_dim} dimensions of a "
                "head do not make pairs; see --heads, --kv-heads and --head-dim"
            )
        if self.hidden % self.heads:
            raise UsageError(f"--hidden {self.hidden} is no multiple of {self.heads} heads, as transformers demands")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json; raises UnsupportedModelError for what is no plain Llama."""
        rope = config.get("rope_parameters") or {}
        if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
            raise UnsupportedModelError("only Llama models without biases can be widened")
        if rope.get("rope_type", "default") not in ROTATIONS or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModelError(f"only rotations of these kinds can be widened: {', '.join(ROTATIONS)}")
        values: dict[str, Any] = {field: config.get(name) for field, name in CONFIG_NAMES.items()}
        values["kv_heads"] = values["kv_heads"] or values["heads"]
        values["head_dim"] = values["head_dim"] or values["hidden"] // values["heads"]
        return cls(**values)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    def as_config(self) -> dict[str, int]:
        return {name: getattr(self, field) for field, name in CONFIG_NAMES.items()}


@dataclass(frozen=True)
class Placement:
    """How `small` lies in `wide`. Raises UsageError where it does not fit.

    The residual stream holds the small one's numbers `copies` times and zeros elsewhere. Only the first copy is read:
    the others are there for the norms, whose mean of squares then changes by a power of four, so that their weights
    change by a power of two and are exact in any dtype. What must be scaled by another number, the queries, is read in
    two parts, the rounded weights from the first copy and what rounding lost from the second.
    """

    small: Shape
    wide: Shape

    def __post_init__(self) -> None:
        for field in fields(Shape):
            if field.name in ("heads", "kv_heads"):
                continue
            small, wide = getattr(self.small, field.name), getattr(self.wide, field.name)
            if wide < small:
                raise UsageError(f"{field.name} {wide} is less than the {small} of the model to be widened")
        if self.copies_of_kv_heads * self.small.kv_heads > self.wide.kv_heads:
            raise UsageError(
                f"{self.small.heads} heads over {self.small.kv_heads} key heads do not fit into {self.wide.heads} over "
                f"{self.wide.kv_heads}: {self.copies_of_kv_heads * self.small.kv_heads} key heads are needed"
            )

    @cached_property
    def copies(self) -> int:
        """Copies of the small residual stream; 1 where no number of them makes the norms' factor a power of two."""
        least = 1 if _is_power_of_two(self.query_scale) else 2
        most = self.wide.hidden // self.small.hidden
        exact = (n for n in range(least, most + 1) if _is_power_of_two(_norm_scale(self, n)))
        return next(exact, 1)

    @property
    def norm_scale(self) -> float:
        """Of norm weights: the mean of squares goes over more numbers, most of which are zero."""
        return _norm_scale(self, self.copies)

    @property
    def query_scale(self) -> float:
        """Of query weights: attention divides by the root of the larger head."""
        return math.sqrt(self.wide.head_dim / self.small.head_dim)

    @property
    def rope_base_power(self) -> float:
        """The wide base is the small one to this power; 1 where the small frequencies are among the wide ones."""
        return 1.0 if self._stride else self.wide.head_dim / self.small.head_dim

    @property
    def _stride(self) -> int:
        """Wide rotary pairs from one small pair to the next with the same base; 0 where the base has to change."""
        ratio, rest = divmod(self.wide.head_dim, self.small.head_dim)
        return 0 if rest else ratio

    @cached_property
    def head_dims(self) -> Tensor:
        """int64 [small head_dim]: where each dimension of a head lies. Pair i is dimensions i and i + head_dim / 2."""
        pairs = torch.arange(self.small.head_dim // 2) * (self._stride or 1)
        return torch.cat((pairs, pairs + self.wide.head_dim // 2))

    @property
    def copies_of_kv_heads(self) -> int:
        """Wide key heads that a small one needs, since each serves no more query heads than the wide group has."""
        return -(-self.small.group // self.wide.group)

    @cached_property
    def kv_heads(self) -> tuple[tuple[int, int], ...]:
        """(wide, small) key heads."""
        n = self.copies_of_kv_heads
        return tuple((small * n + copy, small) for small in range(self.small.kv_heads) for copy in range(n))

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """(wide, small) query heads, each in the group of its key head."""
        places = []
        for small in range(self.small.heads):
            kv_head, member = divmod(small, self.small.group)
            copy, place = divmod(member, self.wide.group)
            places.append(((kv_head * self.copies_of_kv_heads + copy) * self.wide.group + place, small))
        return tuple(places)

    @cached_property
    def layers(self) -> dict[int, int]:
        """Wide layer to small layer, spread over the depth; the others leave the residual stream as it is."""
        return {small * self.wide.layers // self.small.layers: small for small in range(self.small.layers)}

    def wide_rows(self, heads: tuple[tuple[int, int], ...]) -> Tensor:
        """int64: rows of a wide projection that hold these heads, in the order of `small_rows`."""
        return torch.cat([wide * self.wide.head_dim + self.head_dims for wide, _ in heads])

    def small_rows(self, heads: tuple[tuple[int, int], ...]) -> Tensor:
        """int64: the same rows of the small projection."""
        dims = torch.arange(self.small.head_dim)
        return torch.cat([small * self.small.head_dim + dims for _, small in heads])


def _norm_scale(placement: Placement, copies: int) -> float:
    return math.sqrt(copies * placement.small.hidden / placement.wide.hidden)


def _is_power_of_two(value: float) -> bool:
    return math.frexp(value)[0] == 0.5
