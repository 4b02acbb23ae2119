"""Held-out loss of a model."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

WINDOW = 512  # tokens
BATCH_TOKENS = 4096


def next_token_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token; batch: [rows, window + 1]."""
    logits = model(batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def held_out_batches(stream: torch.Tensor, window: int = WINDOW) -> Iterator[torch.Tensor]:
    """Consecutive windows, int64 [rows, window + 1]; the last incomplete batch is left out."""
    rows = BATCH_TOKENS // window
    windows = stream[: (len(stream) - 1) // window * window + 1].unfold(0, window + 1, window)
    for first in range(0, len(windows) - rows + 1, rows):
        yield windows[first : first + rows]


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor, window: int = WINDOW) -> float:
    """Mean cross-entropy in nats a token over the held-out stream, cut into windows."""
    losses = [next_token_loss(model, batch.to(model.device)).item() for batch in held_out_batches(stream, window)]
    return sum(losses) / len(losses)
