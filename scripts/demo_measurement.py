"""Held-out loss of a model, and the acceptance of a draft's proposals by its target."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

WINDOW = 512  # tokens
BATCH_TOKENS = 4096
CHILDREN = 32


@dataclass(frozen=True)
class Acceptance:
    """How often the draft's proposals are the target's, averaged over held-out positions."""

    temperature: float
    positional: list[float]  # [k - 1]: probability that the k-th child drawn is the accepted one
    agreement_t0: float  # share of positions with the same argmax
    one_minus_tv: dict[str, float]  # by temperature: 1 - total variation, the chance that a single child is accepted
    positions: int


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


@torch.no_grad()
def measure_acceptance(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, stream: torch.Tensor, temperature: float, seed: int
) -> Acceptance:
    """Compare the two models' laws at every position of the held-out windows."""
    generator = torch.Generator(target.device).manual_seed(seed)
    agreement, overlap, by_child = [], {"0.6": [], "1.0": []}, []
    for batch in held_out_batches(stream):
        p, q = (m(batch[:, :-1].to(m.device), use_cache=False).logits.flatten(0, 1) for m in (target, draft))
        agreement.append((p.argmax(-1) == q.argmax(-1)).float())
        for name, values in overlap.items():
            values.append(torch.minimum((p / float(name)).softmax(-1), (q / float(name)).softmax(-1)).sum(-1))
        laws = (p / temperature).softmax(-1), (q / temperature).softmax(-1)
        by_child.append(accepted_child(*laws, generator))
    return Acceptance(
        temperature=temperature,
        positional=[round(value, 6) for value in torch.cat(by_child).mean(0).tolist()],
        agreement_t0=round(torch.cat(agreement).mean().item(), 4),
        one_minus_tv={name: round(torch.cat(values).mean().item(), 4) for name, values in overlap.items()},
        positions=len(torch.cat(agreement)),
    )


def accepted_child(p: torch.Tensor, q: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Probability that child 1, 2, … is the accepted one, for one drawing without replacement at each position.

    p, q: target and draft law, [positions, vocabulary]. The rule is Sequoia's (arXiv 2402.12374, algorithm 2). Each
    child is credited with the whole overlap min(p, q) of the laws left to it; the token drawn matters only for the laws
    of the children after it. Returns [positions, CHILDREN].
    """
    reach = torch.ones(len(p), device=p.device)  # probability that all children so far were refused
    accepted = []
    for _ in range(CHILDREN):
        accepted.append(reach * torch.minimum(p, q).sum(-1))
        child = torch.multinomial(q, 1, generator=generator)
        ratio = (p.gather(1, child) / q.gather(1, child)).clamp(max=1.0)[:, 0]
        reach = reach * (1 - ratio)
        p = normalised((p - q).clamp(min=0), otherwise=p)
        q = normalised(q.scatter(1, child, 0.0), otherwise=q)
    return torch.stack(accepted, dim=1)


def normalised(weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Rows of `weights` divided by their sums; a row that is empty by rounding is taken from `otherwise`."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-30), otherwise)
