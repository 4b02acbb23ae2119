"""transformers' functions of Kimi's delta rule, over texts and trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.by_text import branch_over, by_text
from offload_runtime.model.linear_attention.channel_delta_rule import over_tree
from offload_runtime.model.linear_attention.states import current_pass
from scheduler.plan.memory import STATE_CHUNK

Function = Callable[..., tuple[Tensor, Tensor | None]]


def over_channel_delta_rule(function: Function) -> Function:
    """Wrap `chunk_kimi_delta_attention` or its recurrent form."""

    @wraps(function)
    def over_rows(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        current = current_pass()
        if current is None:
            return function(query, key, value, g=g, beta=beta, **kwargs)

        def read(rows: slice, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            """Chunk by chunk: the function holds the factors of all pairs of rows of a chunk, for every channel."""
            outputs, states = [], None if memory is None else memory[None]
            for begin in range(rows.start, rows.stop, STATE_CHUNK):
                piece = slice(begin, min(begin + STATE_CHUNK, rows.stop))
                q, k, v, decay, rate = (tensor[:, piece] for tensor in (query, key, value, g, beta))
                how = {**kwargs, "initial_state": states, "output_final_state": True}
                out, states = function(q, k, v, g=decay, beta=rate, **how)
                outputs.append(out)
            assert states is not None
            return torch.cat(outputs, dim=1), states[0]

        unit = _unit if kwargs.get("use_qk_l2norm_in_kernel", False) else None
        out = by_text(current, read, branch_over(over_tree, unit, (query, key, value, g, beta)))
        return out, out.new_empty(0)

    return over_rows


def _unit(x: Tensor) -> Tensor:
    """As these modules' `l2norm`."""
    return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
