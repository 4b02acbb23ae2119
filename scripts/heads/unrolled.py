"""The loss of an EAGLE-3 head: several steps in which it reads its own output ("training-time test", arXiv 2503.01840).

Row i of step 0 reads token i + 1 and the target's features at token i, and predicts token i + 2. In step s it reads
token i + 1 + s and its own output of step s - 1, and predicts token i + 2 + s: as in a tree, where node s below the
text's end follows nodes whose features are not the target's. It attends to the rows of the text up to i, read in step
0, and to its own earlier steps.
"""

import math
from collections.abc import Iterator
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
class Wanted:
    """What the target says at each row of windows, among the head's tokens; computed once for all steps.

    probabilities: [b, n, draft vocab]. entropy: of these in nats, [b, n]. likeliest: int64 [b, n]. counted: bool
    [b, n], whether the target's likeliest token is one of them.
    """

    probabilities: Tensor
    entropy: Tensor
    likeliest: Tensor
    counted: Tensor

    @classmethod
    def of(cls, logits: Tensor, token_ids: Tensor | None) -> "Wanted":
        """logits: the target's, [b, n, vocab]. token_ids: those that the head can propose; None: all."""
        own = (logits if token_ids is None else logits.index_select(-1, token_ids)).float()
        probabilities = own.softmax(-1)
        entropy = own.logsumexp(-1) - torch.linalg.vecdot(probabilities, own)
        likeliest = own.argmax(-1)
        best = logits.argmax(-1)
        counted = (best == likeliest) if token_ids is None else best == token_ids[likeliest]
        return cls(probabilities, entropy, likeliest, counted)

    def pieces(self, begin: int, count: int) -> Iterator[tuple[Tensor, ...]]:
        """The rows of each window from `begin` on, in `count` parts."""
        every = (self.probabilities, self.entropy, self.likeliest, self.counted)
        return zip(*(each[:, begin:].chunk(count, dim=1) for each in every))


@dataclass(frozen=True)
class StepResult:
    """loss: mean KL divergence in nats a token. agreed: share of rows with the target's likeliest token.

    overlap: mean of 1 - total variation, the chance that a child drawn from the head is accepted at temperature 1;
    NaN where it is not asked for.
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


def unrolled(
    head: Eagle3Head, states: Tensor, tokens: Tensor, wanted: Wanted, steps: int, overlap: bool = False
) -> list[StepResult]:
    """The results of each step over windows of text. states: the target's ``[b, n, taps * hidden]``. tokens: int64
    [b, n]."""
    features, cache, results = head.fuse(states), StepCache(), []
    rows = tokens.shape[1] - 1
    features, positions = features[:, :rows], torch.arange(rows, device=tokens.device)
    for step in range(steps):
        following = F.pad(tokens[:, 1 + step :], (0, step))  # rows at the end have no token to read: left out below
        mask = step_mask(rows, step, str(tokens.device))
        features = head.run_layers(
            head.embed(following), features, (positions + step)[None], [mask] * len(head.layers), cache
        )
        results.append(_compared(head, features[:, : rows - step], wanted, 1 + step, overlap))
    return results


def _compared(head: Eagle3Head, features: Tensor, wanted: Wanted, begin: int, overlap: bool) -> StepResult:
    """Of features at rows from 0 on with what is wanted from row `begin` on."""
    count = -(-features.shape[0] * features.shape[1] * wanted.probabilities.shape[-1] // _MOST_LOGITS)
    pieces = zip(features.chunk(count, dim=1), wanted.pieces(begin, count))
    if count == 1:
        parts = [_divergence(head, overlap, own, *there) for own, there in pieces]
    else:
        parts = [checkpoint(_divergence, head, overlap, own, *there, use_reentrant=False) for own, there in pieces]
    loss, agreed, shared, rows = (torch.stack(values).sum() for values in zip(*parts))
    return StepResult(loss / rows, (agreed / rows).item(), (shared / rows).item() if overlap else math.nan)


def _divergence(
    head: Eagle3Head,
    overlap: bool,
    features: Tensor,
    probabilities: Tensor,
    entropy: Tensor,
    likeliest: Tensor,
    counted: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the rows that count: KL divergence, agreement, overlap, and their number."""
    log_head = head.output(features).float().log_softmax(-1)
    divergence = -torch.linalg.vecdot(probabilities, log_head) - entropy
    with torch.no_grad():
        agreed = (log_head.argmax(-1) == likeliest) & counted
        shared = torch.minimum(log_head.exp(), probabilities).sum(-1) if overlap else entropy
    return (divergence * counted).sum(), agreed.sum(), (shared * counted).sum(), counted.sum()
