"""The texts of a pass, one after the other: rows of text by transformers' own function, rows of a tree along paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offload_runtime.model.linear_attention.states import Branches, CurrentPass, State

Read = Callable[[slice, Tensor | None], tuple[Tensor, Tensor]]
"""Of rows of text that follow a state, None at the beginning: their outputs ``[1, rows, ...]`` and the state after."""

Branch = Callable[[slice, Tensor | None, Branches, Any], tuple[Tensor, Any, Tensor]]
"""Of a tree's rows: outputs ``[1, rows, ...]``, what all of its nodes have written, and the state they begin with.

Given the state before the tree, its branches, and what earlier nodes have written.
"""


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
        pending.after_text = State(pending.after_text.inputs, memory)
    return torch.cat(outputs, dim=1)
