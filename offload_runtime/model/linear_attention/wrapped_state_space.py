"""transformers' function of Mamba 2's state space, over texts and trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from offload_runtime.model.linear_attention.by_text import by_text
from offload_runtime.model.linear_attention.decayed_sums import over_tree
from offload_runtime.model.linear_attention.states import Branches, current_pass
from offload_runtime.model.linear_attention.writes import Writes

Function = Callable[..., Any]

_SHORTEST_CHUNK = 16  # that kernels take


def over_state_space(function: Function) -> Function:
    """Wrap `mamba2_chunk_scan`: x ``[1, rows, heads, p]``, dt ``[1, rows, heads]``, B, C ``[1, rows, groups, n]``."""

    @wraps(function)
    def over_rows(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        current = current_pass()
        if current is None:
            return function(x, dt, A, B, C, chunk_size=chunk_size, **kwargs)
        assert current.layer is not None
        current.layer.differs = _limits(kwargs) is not None

        def read(rows: slice, memory: Tensor | None) -> tuple[Tensor, Tensor]:
            states = None if memory is None else memory.transpose(1, 2)[None]
            how = {**kwargs, "initial_states": states, "return_final_states": True}
            tokens = rows.stop - rows.start
            chunk = min(chunk_size, max(_SHORTEST_CHUNK, 1 << (tokens - 1).bit_length()))  # texts are padded to it
            text, steps, keys, queries = (tensor[:, rows] for tensor in (x, dt, B, C))
            out, last = function(text, steps, A, keys, queries, chunk_size=chunk, **how)
            return out, last[0].transpose(1, 2)

        def branch(
            rows: slice, memory: Tensor | None, branches: Branches, earlier: Writes | None
        ) -> tuple[Tensor, Writes, Tensor]:
            step = _steps(dt[0, rows], branches.of_prompt, kwargs).float().T
            values, key, query = (tensor[0, rows].transpose(0, 1).float() for tensor in (x, B, C))
            if memory is None:
                memory = values.new_zeros(len(values), key.shape[2], values.shape[2])
            decay = A.float()[:, None] * step
            added = values * step[..., None]
            out, writes = over_tree(query, key, added, decay, memory.float(), branches.visible, earlier)
            if (D := kwargs.get("D")) is not None:
                out = out + D[:, None, None] * values
            return out.transpose(0, 1)[None].to(x.dtype), writes, memory

        out = by_text(current, read, branch)
        return (out, out.new_empty(0)) if kwargs.get("return_final_states") else out

    return over_rows


def _steps(dt: Tensor, of_prompt: Tensor, how: dict[str, Any]) -> Tensor:
    """The time steps of nodes ``[n, heads]``; transformers keeps those of the prompt alone within the limits."""
    if (bias := how.get("dt_bias")) is not None:
        dt = dt + bias.to(dt.dtype)
    dt = functional.softplus(dt) if how.get("dt_softplus") else dt
    limits = _limits(how)
    return dt if limits is None else torch.where(of_prompt[:, None], dt.clamp(*limits), dt)


def _limits(how: dict[str, Any]) -> tuple[float, float] | None:
    low, high = how.get("dt_limit", (0.0, float("inf")))
    return None if low <= 0 and high == float("inf") else (low, high)
