"""What trainings have in common: the learning rate over a run, and files that an interrupted run goes on from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

_WARM_UP = 20  # steps


def rate_at(step: int, steps: int, decay_share: float) -> float:
    """Share of the full learning rate: short warm-up, constant, then a linear fall to zero.

    decay_share: the last part of the run, in which it falls.
    """
    return min(1.0, (step + 1) / _WARM_UP, (steps - step) / (steps * decay_share))


def save_run(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int, path: Path) -> None:
    """Write weights, optimizer state and the number of finished steps, replacing the file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers], "step": step}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load_run(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], path: Path) -> int:
    """Restore what `save_run` wrote, and return the number of finished steps; 0 where there is no file."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
