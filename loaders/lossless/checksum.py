"""A checksum over a code and its rest: each is useless, and plausible, beside the other of other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = 1 << 18  # 8 bytes each, at a time; 32 bytes each are in use meanwhile
# The finalizer of SplitMix64, after "Fast splittable pseudorandom number generators" (Steele, Lea, Flood, 2014).
STEP, ROUNDS, LAST = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)), 31
ROLES = ("code", "top", "begin", "fixed", "further", "apart_at", "apart")


@torch.inference_mode()
def checksum(operands: Mapping[str, Tensor], count: int = 1) -> Tensor:
    """Of the fields of `Encoded`, int64 [count], on their device: a sum modulo 2^64, so the order of adding is free.

    count: of weights whose fields are stacked, [count, ...].
    """
    total = torch.zeros(count, dtype=torch.int64, device=operands["code"].device)
    for role in ROLES:
        total = _mixed(total + _of_bytes(operands[role].contiguous().view(count, -1).view(torch.uint8)))
    return total


def _of_bytes(stored: Tensor) -> Tensor:
    """Of each row."""
    count, length = stored.shape
    total = torch.full((count,), length, dtype=torch.int64, device=stored.device)
    step = 8 * max(WORDS // count, 1)
    for begin in range(0, length, step):
        part = stored[:, begin : begin + step]
        words = F.pad(part, (0, -part.shape[1] % 8)).contiguous().view(torch.int64)
        places = torch.arange(begin // 8, begin // 8 + words.shape[1], device=stored.device)
        total += _mixed(words + places.mul_(_signed(STEP))).sum(1)
    return total


def _mixed(words: Tensor) -> Tensor:
    """Each word spread over all of its bits, so that sums tell apart which word was at which place."""
    for shift, factor in ROUNDS:
        words = (words ^ _shifted(words, shift)).mul_(_signed(factor))
    return words ^ _shifted(words, LAST)


def _shifted(words: Tensor, shift: int) -> Tensor:
    return (words >> shift).bitwise_and_((1 << 64 - shift) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
