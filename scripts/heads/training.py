"""Trains a head: batches, learning rates, checkpoints to go on from."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from toolkit.muon import Muon
from toolkit.training import load_run, rate_at, save_run
from torch import Tensor

from heads.target_states import TargetStates
from heads.unrolled import StepResult, log_target_of, unrolled
from loaders.heads.eagle3 import Eagle3Head

_DECAY_SHARE = 0.5
_MATRIX_RATE, _VECTOR_RATE = 0.02, 3e-3
_REPORTED_EVERY, _SAVED_EVERY = 10, 50


@dataclass(frozen=True)
class Run:
    """steps: of the optimizer, each over `batch` windows of `window` tokens. unroll: steps of the head in each, whose
    losses weigh `decay` times less one after the other. checkpoint: the file that an interrupted run goes on from."""

    steps: int
    batch: int
    window: int
    unroll: int
    decay: float
    seed: int
    checkpoint: Path
    rate: float = 1.0


def batch_of(tokens: Tensor, step: int, run: Run) -> Tensor:
    """The windows of one step, int64 [batch, window]: each epoch is a new permutation at a new offset."""
    windows = (len(tokens) - run.window) // run.window
    epoch, index = divmod(step, max(1, windows // run.batch))
    generator = torch.Generator().manual_seed(run.seed * 1000 + epoch)
    offset = int(torch.randint(run.window, (), generator=generator))
    order = torch.randperm(windows, generator=generator)[index * run.batch : (index + 1) * run.batch]
    return tokens[(order * run.window + offset)[:, None] + torch.arange(run.window)].long()


def train(head: Eagle3Head, target: TargetStates, tokens: Tensor, run: Run) -> None:
    """Train in place, going on from the run's checkpoint where there is one."""
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in parameters if parameter.ndim != 2]
    optimizers = [
        Muon([parameter for parameter in parameters if parameter.ndim == 2], lr=_MATRIX_RATE * run.rate),
        torch.optim.Adam(vectors, lr=_VECTOR_RATE * run.rate, betas=(0.9, 0.95)),
    ]
    full_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = load_run(head, optimizers, run.checkpoint)
    began, recent = time.perf_counter(), 0.0
    for step in range(first, run.steps):
        for optimizer, rate in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(step, run.steps, _DECAY_SHARE)
        results = results_of(head, target, batch_of(tokens, step, run), run.unroll)
        loss = weighted(results, run.decay)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vectors, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % _REPORTED_EVERY == 0 or step + 1 == run.steps:
            _report(run, step + 1, recent, results, (time.perf_counter() - began) / (step + 1 - first))
        if (step + 1) % _SAVED_EVERY == 0 or step + 1 == run.steps:
            save_run(head, optimizers, step + 1, run.checkpoint)


def results_of(head: Eagle3Head, target: TargetStates, tokens: Tensor, steps: int) -> list[StepResult]:
    """The head's results over windows of text, int64 [b, n]."""
    tokens = tokens.to(head.device)
    states, logits = target(tokens)
    return unrolled(head, states, tokens, log_target_of(logits, head.token_ids), steps)


def weighted(results: Sequence[StepResult], decay: float) -> Tensor:
    """The mean of the steps' losses, each weighing `decay` times the one before."""
    weights = [decay**number for number in range(len(results))]
    return torch.stack([weight * result.loss for weight, result in zip(weights, results)]).sum() / sum(weights)


@torch.no_grad()
def held_out(head: Eagle3Head, target: TargetStates, tokens: Tensor, run: Run, batches: int) -> list[StepResult]:
    """The mean results over the first `batches` batches of consecutive windows."""
    size = run.batch * run.window
    pieces = [
        tokens[begin : begin + size].view(run.batch, run.window) for begin in range(0, len(tokens) - size + 1, size)
    ]
    every = [results_of(head, target, piece.long(), run.unroll) for piece in pieces[:batches]]
    return [
        StepResult(
            torch.stack([result.loss for result in of_step]).mean(),
            sum(result.agreed for result in of_step) / len(of_step),
            sum(result.overlap for result in of_step) / len(of_step),
        )
        for of_step in zip(*every)
    ]


def _report(run: Run, done: int, loss: float, results: Sequence[StepResult], step_seconds: float) -> None:
    agreed = " ".join(f"{result.agreed:.3f}" for result in results)
    left = (run.steps - done) * step_seconds / 60
    print(
        f"step {done}/{run.steps}, loss {loss:.3f}, agreed {agreed}, {step_seconds:.2f} s a step, {left:.1f} min left",
        file=sys.stderr,
        flush=True,
    )
