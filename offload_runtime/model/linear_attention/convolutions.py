"""What sees the last few inputs of a text, such as short causal convolutions, over a tree.

Each node sees its own last ancestors, then the end of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from offload_runtime.model.linear_attention.states import CurrentPass, current_pass

OfText = Callable[[Tensor], Tensor]
"""Of ``[1, channels, width - 1 + rows]``, the inputs of some rows of text and those before: outputs of these rows."""

OfNodes = Callable[[Tensor], Tensor]
"""Of ``[channels, nodes, width]``, what each node sees, itself last: outputs ``[channels, nodes]``."""


def over_windows(
    current: CurrentPass, inputs: Tensor, width: int, of_text: OfText, of_nodes: OfNodes, before: float = 0
) -> Tensor:
    """The outputs ``[1, channels, rows]`` of a function of each row's last `width` inputs, for all rows of the pass.

    inputs: ``[1, channels, rows]``. before: the inputs before the first token. The last inputs of every text are kept
    in its state, and those of nodes as pending, under the number of `current.convolution`.
    """
    assert current.layer is not None
    outputs = []
    for rows, number, branches in current.texts:
        pending = current.layer.begin(number)
        own, kept = inputs[:, :, rows], pending.after_text.inputs
        tail = kept.get(current.convolution)
        if tail is None:
            tail = own.new_full((1, own.shape[1], width - 1), before)
        if chain := branches.chain:
            text = torch.cat((tail, own[:, :, :chain]), dim=2)
            outputs.append(of_text(text))
            tail = text[:, :, -(width - 1) :]
        kept[current.convolution] = tail
        if branches.count:
            nodes = own[:, :, chain:]
            if (earlier := pending.inputs.get(current.convolution)) is not None:
                nodes = torch.cat((earlier, nodes), dim=2)
            pending.inputs[current.convolution] = nodes
            seen = torch.cat((tail, nodes), dim=2)[:, :, (branches.windows(width) + width - 1).view(-1)]
            outputs.append(of_nodes(seen.view(seen.shape[1], branches.count, width))[None])
    return torch.cat(outputs, dim=2)


def over_convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap `causal_conv1d_fn`: inputs ``[1, channels, rows]``, weight ``[channels, kernel]``."""

    @wraps(function)
    def over_rows(
        inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs: Any
    ) -> Tensor:
        current = current_pass()
        if current is None:
            return function(inputs, weight, bias, activation=activation, **kwargs)
        kernel = weight.shape[-1]

        def of_text(text: Tensor) -> Tensor:
            return function(text, weight, bias, activation=activation)[:, :, kernel - 1 :]

        def of_nodes(seen: Tensor) -> Tensor:
            out = (seen.to(weight.dtype) * weight[:, None, :]).sum(-1)
            out = out if bias is None else out + bias[:, None]
            return (out if activation is None else ACT2FN[activation](out)).to(inputs.dtype)

        return over_windows(current, inputs, kernel, of_text, of_nodes)

    return over_rows
