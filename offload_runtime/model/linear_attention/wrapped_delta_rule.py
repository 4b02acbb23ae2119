"""transformers' functions of the gated delta rule, over texts and trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.by_text import branch_over, by_text
from offload_runtime.model.linear_attention.delta_rule import over_tree
from offload_runtime.model.linear_attention.states import current_pass

Function = Callable[..., tuple[Tensor, Tensor | None]]


def over_delta_rule(function: Function) -> Function:
    """Wrap `torch_chunk_gated_delta_rule` or its recurrent form."""

    @wraps(function)
    def over_rows(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        current = current_pass()
        if current is None:
            return function(query, key, value, g=g, beta=beta, **kwargs)

        def read(rows: slice, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            q, k, v, decay, rate = (tensor[:, rows] for tensor in (query, key, value, g, beta))
            how = {**kwargs, "initial_state": None if memory is None else memory[None], "output_final_state": True}
            out, last = function(q, k, v, g=decay, beta=rate, **how)
            assert last is not None
            return out, last[0]

        norm = unit if kwargs.get("use_qk_l2norm_in_kernel", False) else None
        return by_text(current, read, branch_over(over_tree, norm, (query, key, value, g, beta))), None

    return over_rows


def unit(x: Tensor) -> Tensor:
    """As transformers' `l2norm`."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
