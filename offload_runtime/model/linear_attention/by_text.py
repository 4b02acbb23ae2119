"""The texts of a pass, one after the other: rows of text by transformers' own function, rows of a tree along paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.states import Branches, CurrentPass, LayerState

Read = Callable[[slice, Tensor | None], tuple[Tensor, Tensor]]
"""Of rows of text that follow a state, None at the beginning: their outputs ``[1, rows, ...]`` and the state after."""

Branch = Callable[[slice, Tensor | None, Branches, Any], tuple[Tensor, Any, Tensor]]
"""Of a tree's rows: outputs ``[1, rows, ...]``, what all of its nodes have written, and the state they begin with.

Given the state before the tree, its branches, and what earlier nodes have written.
"""


def branch_over(
    rule: Callable[..., tuple[Tensor, Any]], unit: Callable[[Tensor], Tensor] | None, tensors: Sequence[Tensor]
) -> Branch:
    """The branch of a delta rule `over_tree`, in float32.

    unit: normalizes queries and keys, if anything does. tensors: query, key, value, decay, beta of all rows of the
    pass, each ``[1, rows, heads, ...]``; several heads of values may have the same query and key.
    """

    def branch(rows: slice, memory: Tensor | None, branches: Branches, earlier: Any) -> tuple[Tensor, Any, Tensor]:
        q, k, v, decay, rate = (tensor[0, rows].transpose(0, 1).float() for tensor in tensors)
        groups = len(v) // len(k)
        if groups > 1:
            q, k = q.repeat_interleave(groups, 0), k.repeat_interleave(groups, 0)
        if unit is not None:
            q, k = unit(q), unit(k)
        memory = v.new_zeros(len(v), k.shape[2], v.shape[2]) if memory is None else memory.float()
        q = q * q.shape[-1] ** -0.5
        out, writes = rule(q, k, v, decay, rate, memory, branches.visible, earlier)
        return out.transpose(0, 1)[None].to(tensors[0].dtype), writes, memory

    return branch


def by_text(current: CurrentPass, read: Read, branch: Branch) -> Tensor:
    """The outputs of a recurrent layer for all rows of the pass; states and writes are kept as pending."""
    assert current.layer is not None
    outputs = []
    for rows, number, branches in current.texts:
        pending, border = current.layer.begin(number), rows.start + branches.chain
        memory = pending.after_text.memory
        if branches.chain:
            out, memory = read(slice(rows.start, border), memory)
            outputs.append(out)
        if branches.count:
            out, pending.written, memory = branch(slice(border, rows.stop), memory, branches, pending.written)
            outputs.append(out)
        pending.after_text = LayerState(pending.after_text.inputs, memory)
    return torch.cat(outputs, dim=1)
