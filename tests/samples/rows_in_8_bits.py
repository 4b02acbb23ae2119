"""transformers' own models over a cache whose rows are rounded to 8 bits, written down anew."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.samples.tiny_models import greedy, reference


class RoundedCache(DynamicCache):
    """Keys and values are rounded before the layer that writes them reads them."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(rounded(keys), rounded(values), *args, **kwargs)


def rounded(rows: Tensor) -> Tensor:
    """To 127 steps on either side of zero, the largest value of each row of a head being the last of them."""
    steps = (rows.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-38)
    return torch.round(rows / steps) * steps


def greedy_in_8_bits(directory: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The new tokens of `generate` over such a cache, computed once per process."""
    return list(_greedy_in_8_bits(directory, tuple(prompt), count))


@cache
def _greedy_in_8_bits(directory: Path, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    cached = RoundedCache(config=reference(directory).config)
    return tuple(greedy(directory, prompt, count, past_key_values=cached))


@torch.inference_mode()
def logits_in_8_bits(directory: Path, text: Sequence[int]) -> Tensor:
    """The logits ``[vocab]`` after a text."""
    model = reference(directory)
    return model(torch.tensor([text]), past_key_values=RoundedCache(config=model.config)).logits[0, -1]
