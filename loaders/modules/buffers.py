"""Buffers that no file holds: they get the values that transformers' `from_pretrained` gives them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loaders.errors import UnsupportedModelError
from loaders.safetensors_files.headers import Checkpoint

# Buffers that transformers saves, and computes where files lack them: decays of MiniMax's lightning attention.
COMPUTED = {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}
MOST_BUFFER_BYTES = 4 << 30  # rotary frequencies have a few kB, tables of all positions some MB


def compute_what_is_not_stored(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Let the buffers in COMPUTED be no part of the state dict, where the files hold none of them."""
    for name, _ in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if leaf in COMPUTED and name not in checkpoint.tensors:
            model.get_submodule(owner)._non_persistent_buffers_set.add(leaf)


@torch.no_grad()
def compute_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give the non-persistent buffers, which no file holds, the values `from_pretrained` gives them."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # initialize_weights() then leaves them alone
    buffers = list(model.named_non_persistent_buffers())
    if (nbytes := sum(buffer.nbytes for _, buffer in buffers)) > MOST_BUFFER_BYTES:
        raise UnsupportedModelError(
            f"its tables of positions would take {nbytes:,} bytes: config.json states too many."
        )
    for name, buffer in buffers:
        _replace_buffer(model, name, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()
    for name, _ in buffers:
        _replace_buffer(model, name, model.get_buffer(name).to(device))


def _replace_buffer(model: nn.Module, name: str, buffer: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._buffers[leaf] = buffer
