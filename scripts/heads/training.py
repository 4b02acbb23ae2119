"""Trains a head on windows of text, measures it on text that is held out, and writes it as SpecForge does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
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


def write_head(head: Eagle3Head, folder: Path, dtype: torch.dtype) -> None:
    """`model.safetensors` and `config.json`.

    A tap is named by the layer whose output it is; without `draft_vocab_size` the output layer is the target's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, stored = head.head, {name: tensor.to(dtype).contiguous() for name, tensor in head.state_dict().items()}
    tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in stored.items()}
    if head.token_ids is not None:
        ids = head.token_ids.cpu()
        known = torch.zeros(config.vocab_size, dtype=torch.bool)
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": known.index_fill_(0, ids, True)}
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    written = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **config.layer,
        **({"draft_vocab_size": config.draft_vocab_size} if config.maps_tokens else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in config.taps],
            "use_aux_hidden_state": True,
        },
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
