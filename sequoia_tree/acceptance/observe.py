"""Observing acceptance: from the distributions of target and draft at n contexts to an `Acceptance` table."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sequoia_tree.acceptance.acceptance import BIN_EDGES, BINS, MAX_CHILDREN, SCALES, Acceptance
from sequoia_tree.uploads import upload
from sequoia_tree.verification.sampling import draw_without_replacement, probabilities

_MOST_LOSS = 100.0  # nats; the loss of a token that the draft excludes would be infinite
_TINY = torch.finfo(torch.float32).tiny


def observe(p: Tensor, q: Tensor, children: Tensor) -> Acceptance:
    """The table of n contexts with given children; arguments as for `credits`. Waits for the device once."""
    credit, known = credits(p, q, children[:, : MAX_CHILDREN - 1])
    return _table(credit, known, q.amax(-1), q.new_zeros(len(SCALES)), 0)


def observe_distributions(log_p: Tensor, log_q: Tensor, generator: torch.Generator) -> Acceptance:
    """The table of n contexts, with children drawn here: log-probabilities, float32 [n, V], as from `log_probs`."""
    children = draw_without_replacement(log_q, MAX_CHILDREN - 1, generator)
    return observe(probabilities(log_p), probabilities(log_q), children)


def observe_greedy(target_logits: Tensor, draft_logits: Tensor) -> Acceptance:
    """The table of n contexts at temperature 0, from logits [n, V]: child k is the draft's k-th likeliest token.

    Its credit is 1 where it is the target's argmax. m is the maximum of softmax(draft logits). Of equal logits the
    lower token id comes first. Waits for the device once.
    """
    draft = draft_logits.float()
    best = target_logits.argmax(-1, keepdim=True)
    of_best = draft.gather(-1, best)
    ahead = (draft == of_best) & (torch.arange(draft.shape[-1], device=draft.device) < best)
    rank = ((draft > of_best) | ahead).sum(-1).clamp(max=MAX_CHILDREN)
    credit = F.one_hot(rank, MAX_CHILDREN + 1)[:, :MAX_CHILDREN]
    losses = [-(draft / scale).log_softmax(-1).gather(-1, best).clamp(min=-_MOST_LOSS).sum() for scale in SCALES]
    largest = draft.softmax(-1).amax(-1)
    return _table(credit, torch.ones_like(credit, dtype=torch.bool), largest, torch.stack(losses), len(draft))


def credits(p: Tensor, q: Tensor, children: Tensor) -> tuple[Tensor, Tensor]:
    """The chance that child 1, 2, … K + 1 is the accepted one under Sequoia's rule (arXiv 2402.12374, algorithm 2).

    p, q: float32 [n, V], the target's and the draft's distribution. children: int64 [n, K], tokens drawn without
    replacement from q, in drawing order, -1 where none was drawn. Child k's credit is the chance that children 1 to
    k - 1, whose tokens are given, are all rejected, times the overlap, sum of min(p_k, q_k), of the distributions then
    left. A drawn token affects only the children after it.

    Returns the credit, float32 [n, K + 1], and whether it is known, bool [n, K + 1]: up to the child whose token is the
    first -1; if q has no token left, up to the end, with credit 0. Unknown credits are 0.
    """
    rows = torch.arange(len(p), device=p.device)
    reach = torch.ones(len(p), device=p.device)  # the chance that all children so far were rejected
    known = torch.ones(len(p), dtype=torch.bool, device=p.device)
    credit, observed = [], []
    for tokens in (*children.clamp(min=0).unbind(1), None):
        credit.append((reach * torch.minimum(p, q).sum(-1)).clamp(0, 1))
        observed.append(known)
        if tokens is None:
            break
        drawn = children[:, len(credit) - 1] >= 0
        known = known & (drawn | (q.amax(-1) == 0))
        ratio = p[rows, tokens] / q[rows, tokens].clamp(min=_TINY)
        reach = reach * (1 - ratio.clamp(max=1))
        residual = (p - q).clamp_(min=0)
        p = torch.where(residual.amax(-1, keepdim=True) > 0, residual, p)  # p equals q up to rounding: go on with p
        p, q = _normalised(p), _normalised(q.scatter(1, tokens[:, None], 0.0))
    observation = torch.stack(observed, dim=1)
    return torch.stack(credit, dim=1).masked_fill(~observation, 0), observation


def _normalised(weights: Tensor) -> Tensor:
    """Rows divided by their sums; rows of zeros are kept."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=_TINY)


def _table(credit: Tensor, known: Tensor, largest: Tensor, losses: Tensor, scaled: int) -> Acceptance:
    """Sum credit [n, up to MAX_CHILDREN] where `known` over the bins of `largest` [n]; everything in one transfer."""
    edges = upload(np.array(BIN_EDGES, dtype=np.float32), largest.device)
    bins = torch.bucketize(largest, edges, right=True)
    values = torch.stack((known, credit, credit**2)).double()
    sums = values.new_zeros(3, BINS, MAX_CHILDREN)
    sums[..., : credit.shape[1]].index_add_(1, bins, values)
    numbers = torch.cat((sums.flatten(), losses.double())).cpu().numpy()
    counts, credits, squares = numbers[: sums.numel()].reshape(sums.shape)
    return Acceptance(counts, credits, squares, numbers[sums.numel() :], scaled)
