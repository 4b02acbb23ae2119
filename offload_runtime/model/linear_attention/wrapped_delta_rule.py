"""transformers' functions of the gated delta rule and of Kimi's, over texts and trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention import channel_delta_rule, delta_rule
from offload_runtime.model.linear_attention.by_text import branch_over, by_text
from offload_runtime.model.linear_attention.states import current_pass
from scheduler.plan.memory import STATE_CHUNK

Function = Callable[..., tuple[Tensor, Tensor | None]]


def over_delta_rule(function: Function) -> Function:
    """Wrap `torch_chunk_gated_delta_rule` or its recurrent form."""
    return _wrapped(function, delta_rule.over_tree, None)


def over_channel_delta_rule(function: Function) -> Function:
    """Wrap `chunk_kimi_delta_attention` or its recurrent form.

    Text goes to it chunk by chunk: it holds the factors of all pairs of rows of a chunk, for every channel.
    """
    return _wrapped(function, channel_delta_rule.over_tree, STATE_CHUNK)


def _wrapped(function: Function, rule: Callable[..., tuple[Tensor, Any]], chunk: int | None) -> Function:
    """chunk: the rows of text that the function takes at once; all of them if None."""

    @wraps(function)
    def over_rows(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        current = current_pass()
        if current is None:
            return function(query, key, value, g=g, beta=beta, **kwargs)

        def read(rows: slice, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            outputs, states = [], None if memory is None else memory[None]
            step = chunk or rows.stop - rows.start
            for begin in range(rows.start, rows.stop, step):
                piece = slice(begin, min(begin + step, rows.stop))
                q, k, v, decay, rate = (tensor[:, piece] for tensor in (query, key, value, g, beta))
                how = {**kwargs, "initial_state": states, "output_final_state": True}
                out, states = function(q, k, v, g=decay, beta=rate, **how)
                outputs.append(out)
            assert states is not None
            return torch.cat(outputs, dim=1), states[0]

        norm = _unit if kwargs.get("use_qk_l2norm_in_kernel", False) else None
        out = by_text(current, read, branch_over(rule, norm, (query, key, value, g, beta)))
        return out, out.new_empty(0)  # the layers keep the states

    return over_rows


def _unit(x: Tensor) -> Tensor:
    """As transformers' `l2norm`."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
