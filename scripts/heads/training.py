"""Trains a head on windows of text, and measures it on text that is held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from toolkit import training
from torch import Tensor

from heads.target_states import TargetStates
from heads.unrolled import StepResult, Wanted, unrolled
from loaders.heads.eagle3 import Eagle3Head


@dataclass(frozen=True)
class Windows:
    """Of a step: `batch` of them with `window` tokens each.

    unroll: steps of the head in each, whose losses weigh `decay` times less one after the other.
    """

    batch: int
    window: int
    unroll: int
    decay: float
    seed: int


def train(head: Eagle3Head, target: TargetStates, tokens: Tensor, windows: Windows, run: training.Run) -> None:
    """Train in place, going on from the run's checkpoint where there is one."""
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in parameters if parameter.ndim != 2]
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]

    def loss_at(step: int) -> tuple[Tensor, str]:
        batch = training.batch_of(tokens, step, windows.seed, windows.batch, windows.window)
        results = results_of(head, target, batch, windows.unroll)
        agreed = " ".join(f"{result.agreed:.3f}" for result in results)
        return weighted(results, windows.decay), f", agreed {agreed}"

    training.train(head, matrices, vectors, run, loss_at)


def results_of(
    head: Eagle3Head, target: TargetStates, tokens: Tensor, steps: int, overlap: bool = False
) -> list[StepResult]:
    """The head's results over windows of text, int64 [b, n]."""
    tokens = tokens.to(head.device)
    states, logits = target(tokens)
    return unrolled(head, states, tokens, Wanted.of(logits, head.token_ids), steps, overlap)


def weighted(results: Sequence[StepResult], decay: float) -> Tensor:
    """The mean of the steps' losses, each weighing `decay` times the one before."""
    weights = [decay**number for number in range(len(results))]
    return torch.stack([weight * result.loss for weight, result in zip(weights, results)]).sum() / sum(weights)


@torch.no_grad()
def held_out(
    head: Eagle3Head, target: TargetStates, tokens: Tensor, windows: Windows, batches: int
) -> list[StepResult]:
    """The mean results over the first `batches` batches of consecutive windows."""
    pieces = tokens[: len(tokens) // windows.window * windows.window].long().view(-1, windows.window)
    whole = [piece for piece in pieces.split(windows.batch) if len(piece) == windows.batch]
    every = [results_of(head, target, piece, windows.unroll, overlap=True) for piece in whole[:batches]]
    return [
        StepResult(
            torch.stack([result.loss for result in of_step]).mean(),
            sum(result.agreed for result in of_step) / len(of_step),
            sum(result.overlap for result in of_step) / len(of_step),
        )
        for of_step in zip(*every)
    ]
