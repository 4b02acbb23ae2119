"""transformers' functions of the gated delta rule, over texts and trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.by_text import by_text
from offload_runtime.model.linear_attention.delta_rule import over_tree
from offload_runtime.model.linear_attention.states import Branches, current_pass
from offload_runtime.model.linear_attention.writes import Writes

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

        def branch(
            rows: slice, memory: Tensor | None, branches: Branches, earlier: Writes | None
        ) -> tuple[Tensor, Writes, Tensor]:
            nodes = (tensor[0, rows].transpose(0, 1).float() for tensor in (query, key, value, g, beta))
            q, k, v, decay, rate = nodes
            groups = len(v) // len(k)
            q, k = q.repeat_interleave(groups, 0), k.repeat_interleave(groups, 0)
            if kwargs.get("use_qk_l2norm_in_kernel", False):
                q, k = unit(q), unit(k)
            memory = v.new_zeros(len(v), k.shape[2], v.shape[2]) if memory is None else memory.float()
            q = q * q.shape[-1] ** -0.5
            out, writes = over_tree(q, k, v, decay, rate, memory, branches.visible, earlier)
            return out.transpose(0, 1)[None].to(query.dtype), writes, memory

        return by_text(current, read, branch), None

    return over_rows


def unit(x: Tensor) -> Tensor:
    """As transformers' `l2norm`."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
