"""The loss of an EAGLE-3 head: several steps in which it reads its own output ("training-time test", arXiv 2503.01840).

Row i of step 0 reads token i + 1 and the target's features at token i, and predicts token i + 2. In step s it reads
token i + 1 + s and its own output of step s - 1, and predicts token i + 2 + s: as in a tree, where node s below the
text's end follows nodes whose features are not the target's. It attends to the rows of the text up to i, read in step
0, and to its own earlier steps.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loaders.heads.eagle3 import Eagle3Head

_MOST_LOGITS = 1 << 25  # held at once by one step; more are computed in pieces, and again in the backward pass


class StepCache:
    """The keys and values of all steps so far, in the form that transformers' attention asks for."""

    def __init__(self) -> None:
        self._by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``[b, heads, n, head_dim]``; the rows of all steps, step after step."""
        if layer in self._by_layer:
            earlier_keys, earlier_values = self._by_layer[layer]
            keys, values = torch.cat((earlier_keys, keys), dim=2), torch.cat((earlier_values, values), dim=2)
        self._by_layer[layer] = keys, values
        return keys, values


@dataclass(frozen=True)
class StepResult:
    """loss: mean KL divergence in nats a token. agreed: share of rows with the target's likeliest token.

    overlap: mean of 1 - total variation, the chance that a child drawn from the head is accepted at temperature 1.
    """

    loss: Tensor
    agreed: float
    overlap: float


@lru_cache(maxsize=64)
def step_mask(rows: int, step: int, device: str) -> Tensor:
    """bool [1, 1, rows, rows * (step + 1)]: the text up to the row, and the row's own earlier steps."""
    own = torch.eye(rows, dtype=torch.bool, device=device)
    text = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    return torch.cat([text, *[own] * step], dim=1)[None, None]


def unrolled(head: Eagle3Head, states: Tensor, tokens: Tensor, log_target: Tensor, steps: int) -> list[StepResult]:
    """The results of each step over windows of text.

    states: the target's ``[b, n, taps * hidden]``. tokens: int64 [b, n]. log_target: the target's log-probabilities
    of the head's tokens, ``[b, n, draft vocab]``; rows in which its likeliest token is none of them begin with NaN.
    """
    features, cache, results = head.fuse(states), StepCache(), []
    rows = tokens.shape[1] - 1
    features, positions = features[:, :rows], torch.arange(rows, device=tokens.device)
    for step in range(steps):
        following = F.pad(tokens[:, 1 + step :], (0, step))  # rows at the end have no token to read: left out below
        mask = step_mask(rows, step, str(tokens.device))
        features = head.run_layers(
            head.embed(following), features, (positions + step)[None], [mask] * len(head.layers), cache
        )
        results.append(_compared(head, features[:, : rows - step], log_target[:, 1 + step :]))
    return results


def _compared(head: Eagle3Head, features: Tensor, log_target: Tensor) -> StepResult:
    features, log_target = features.flatten(0, 1), log_target.flatten(0, 1)
    pieces = -(-log_target.numel() // _MOST_LOGITS)
    if pieces == 1:
        parts = [_divergence(head, features, log_target)]
    else:
        parts = [
            checkpoint(_divergence, head, *piece, use_reentrant=False)
            for piece in zip(features.chunk(pieces), log_target.chunk(pieces))
        ]
    loss, agreed, overlap, rows = (torch.stack(values).sum() for values in zip(*parts))
    return StepResult(loss / rows, (agreed / rows).item(), (overlap / rows).item())


def _divergence(head: Eagle3Head, features: Tensor, log_target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the rows that count: KL divergence, agreement, overlap, and their number."""
    log_head = head.output(features).float().log_softmax(-1)
    counted = ~log_target[:, 0].isnan()
    target = log_target.nan_to_num(0.0).exp()
    divergence = (target * (log_target.nan_to_num(0.0) - log_head)).sum(-1)
    with torch.no_grad():
        agreed = (log_head.argmax(-1) == log_target.argmax(-1)) & counted
        overlap = torch.minimum(log_head.exp(), target).sum(-1)
    return (divergence * counted).sum(), agreed.sum(), (overlap * counted).sum(), counted.sum()


def log_target_of(logits: Tensor, token_ids: Tensor | None) -> Tensor:
    """The target's log-probabilities ``[b, n, draft vocab]`` among the head's tokens, for `unrolled`."""
    if token_ids is None:
        return logits.float().log_softmax(-1)
    own = logits.index_select(-1, token_ids).float().log_softmax(-1)
    known = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill_(0, token_ids, True)
    own[..., 0] = own[..., 0].masked_fill(~known[logits.argmax(-1)], torch.nan)
    return own
