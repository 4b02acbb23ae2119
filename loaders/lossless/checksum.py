"""A checksum over a code and its rest: each is useless, and plausible, beside the other of other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = 1 << 18  # 8 bytes each, at a time; 24 bytes each are in use meanwhile
STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that no word's factor is 0: of words and places, all bits count
ROLES = ("code", "top", "begin", "fixed", "further", "apart_at", "apart")


@torch.inference_mode()
def checksum(operands: Mapping[str, Tensor]) -> Tensor:
    """Of the fields of `Encoded`, int64 [1], on their device: a sum modulo 2^64, so the order of adding is free."""
    total = torch.zeros(1, dtype=torch.int64, device=operands["code"].device)
    for role in ROLES:
        total = total * STEP + _of_bytes(operands[role].contiguous().view(-1).view(torch.uint8))
    return total


def _of_bytes(stored: Tensor) -> Tensor:
    total = torch.full((1,), len(stored), dtype=torch.int64, device=stored.device)
    for begin in range(0, len(stored), 8 * WORDS):
        part = stored[begin : begin + 8 * WORDS]
        words = F.pad(part, (0, -len(part) % 8)).view(torch.int64)
        factors = torch.arange(begin // 8, begin // 8 + len(words), device=stored.device)
        factors.mul_(2).add_(1).mul_(STEP)
        total += (words ^ words >> 29).mul_(factors).sum()
    return total
