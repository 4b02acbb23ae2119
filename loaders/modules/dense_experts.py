"""Computes mixtures of experts without reading the routed experts back, for GPUs whose grouped GEMM would do so.

`torch._grouped_mm` has a kernel for bfloat16 on capability 9 and 10; elsewhere it copies the number of tokens of each
expert to the host and launches a GEMM per expert. That stalls the host twice a layer and rules out CUDA graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from loaders.modules.expert_memory import GATHERED_SHARE, WORKSPACE_BYTES, row_bytes, rows_at_once

NAME = "dense_mm"  # beside transformers' own: eager, batched_mm, grouped_mm
KERNEL_CAPABILITIES = (9, 10)
# Enough for a tree of 768 nodes and the text read with it: streaming a layer then takes longer than computing all its
# experts. Longer prompts can afford to wait for the host twice a layer.
MOST_DENSE_ROWS = 800


def grouped_products_wait(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's grouped GEMM makes the host wait for this device."""
    if device.type != "cuda":
        return False
    return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device)[0] not in KERNEL_CAPABILITIES


def experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' interface: each token [n, hidden] through its experts [n, k], weighted [n, k] and summed."""
    down: Tensor = module.down_proj  # type: ignore[assignment]
    rows, per_row = top_k_index.shape
    if rows > MOST_DENSE_ROWS:
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, hidden_states, top_k_index, top_k_weights)
    experts, expert_bytes = len(down), 3 * down.nbytes  # of gate, up and down
    choices = rows * per_row
    if choices * GATHERED_SHARE <= experts and choices * expert_bytes <= experts * WORKSPACE_BYTES:
        return ALL_EXPERTS_FUNCTIONS["batched_mm"](module, hidden_states, top_k_index, top_k_weights)
    at_once = rows_at_once(row_bytes(experts, hidden_states.shape[1], expert_bytes, down.itemsize))
    pieces = (each.split(at_once) for each in (hidden_states, top_k_index, top_k_weights))
    return torch.cat([_dense(module, *piece) for piece in zip(*pieces)])


def _dense(module: nn.Module, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute every token [n, hidden] with every expert, and keep the results of the chosen ones [n, k].

    Experts that no token is routed to may hold anything, NaN included: their results are dropped, not multiplied.
    """
    experts, count = len(module.down_proj), len(rows)  # type: ignore[arg-type]
    name = "gate_up_proj" if module.has_gate else "up_proj"
    widened = _product(module, name, rows.expand(experts, -1, -1)).flatten(0, 1)
    inner = module._apply_gate(widened) if module.has_gate else module.act_fn(widened)  # type: ignore[operator]
    results = _product(module, "down_proj", inner.unflatten(0, (experts, count))).flatten(0, 1)
    own = chosen * count + torch.arange(count, device=chosen.device)[:, None]
    results = results[own.flatten()]
    if getattr(module, "has_post_expert_norm", False):
        results = module.post_expert_norm(results)  # type: ignore[operator]
    weighted = results * weights.reshape(-1, 1)
    return weighted.unflatten(0, chosen.shape).sum(dim=1).to(rows.dtype)


def _product(module: nn.Module, name: str, rows: Tensor) -> Tensor:
    """Tokens [experts, n, in] times each expert's matrix of this name, [experts, n, out]."""
    matrices: Tensor = getattr(module, name)
    matrices = matrices if module.is_transposed else matrices.transpose(1, 2)
    rows = rows.to(matrices.dtype)
    if not module.has_bias:
        return torch.bmm(rows, matrices)
    return torch.baddbmm(getattr(module, f"{name}_bias")[:, None], rows, matrices)


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
