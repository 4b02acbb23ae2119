"""What trainings have in common: batches, the loop, its optimizer and learning rates, files that a run goes on from."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_WARM_UP = 20  # steps
_MATRIX_RATE, _VECTOR_RATE = 0.02, 3e-3
_REPORTED_EVERY, _SAVED_EVERY = 20, 50

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Run:
    """steps: of the optimizers. checkpoint: the file that an interrupted run goes on from.

    rate: share of the full learning rates, which fall to zero in the last `decay_share` of the run.
    """

    name: str
    steps: int
    checkpoint: Path
    decay_share: float
    rate: float = 1.0

    def rate_at(self, step: int) -> float:
        """Share of the learning rate: short warm-up, constant, then a linear fall."""
        return min(1.0, (step + 1) / _WARM_UP, (self.steps - step) / (self.steps * self.decay_share))


def encoded(conversations: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Conversations through the chat template, one after the other: int32 [tokens]."""
    texts: Any = tokenizer.apply_chat_template(conversations, tokenize=False)
    ids = [token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    return torch.tensor(ids, dtype=torch.int32)


def batch_of(tokens: Tensor, step: int, seed: int, rows: int, window: int, more: int = 0) -> Tensor:
    """The windows of one step, int64 [rows, window + more]: each epoch is a new permutation at a new offset.

    more: tokens of the next window that each row ends with.
    """
    windows = (len(tokens) - more) // window - 1
    epoch, index = divmod(step, max(1, windows // rows))
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    offset = int(torch.randint(window, (), generator=generator))
    order = torch.randperm(windows, generator=generator)[index * rows : (index + 1) * rows]
    return tokens[(order * window + offset)[:, None] + torch.arange(window + more)].long()


def train(
    model: nn.Module,
    matrices: list[nn.Parameter],
    others: list[nn.Parameter],
    run: Run,
    loss_at: Callable[[int], tuple[Tensor, str]],
) -> None:
    """Train in place, going on from the run's checkpoint where there is one.

    loss_at: of a step, what is minimised, and what else the line about it says.
    """
    optimizers = [
        Muon(matrices, lr=_MATRIX_RATE * run.rate),
        torch.optim.Adam(others, lr=_VECTOR_RATE * run.rate, betas=(0.9, 0.95)),
    ]
    full_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = _load(model, optimizers, run.checkpoint)
    began, recent = time.perf_counter(), 0.0
    for step in range(first, run.steps):
        for optimizer, rate in zip(optimizers, full_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * run.rate_at(step)
        loss, said = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        done = step + 1
        if done % _REPORTED_EVERY == 0 or done == run.steps:
            each = (time.perf_counter() - began) / (done - first)
            left = f"{each:.2f} s a step, {(run.steps - done) * each / 60:.1f} min left"
            print(f"{run.name}: step {done}/{run.steps}, loss {recent:.3f}{said}, {left}", file=sys.stderr, flush=True)
        if done % _SAVED_EVERY == 0 or done == run.steps:
            _save(model, optimizers, done, run.checkpoint)


def _save(model: nn.Module, optimizers: Optimizers, step: int, path: Path) -> None:
    """Write weights, optimizer state and the number of finished steps, replacing the file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers], "step": step}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _load(model: nn.Module, optimizers: Optimizers, path: Path) -> int:
    """Restore what `_save` wrote, and return the number of finished steps; 0 where there is no file."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised by Newton-Schulz iterations (Jordan et al., 2024), in float32.

    torch.optim.Muon iterates in bfloat16, which CPUs without bf16 units emulate very slowly.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(average, group["momentum"]))
                rows, columns = parameter.shape
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Move the singular values of a [rows, columns] matrix to about 1, by the quintic Newton-Schulz iteration."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: torch.Tensor = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
