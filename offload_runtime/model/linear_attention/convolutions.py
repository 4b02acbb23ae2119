"""Short causal convolutions over a tree: each node sees its own last ancestors, then the end of the text."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from offload_runtime.model.linear_attention.states import current_pass


def over_convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap `causal_conv1d_fn`: inputs ``[1, channels, rows]``, weight ``[channels, kernel]``."""

    @wraps(function)
    def over_rows(
        inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs: Any
    ) -> Tensor:
        current = current_pass()
        if current is None:
            return function(inputs, weight, bias, activation=activation, **kwargs)
        assert current.layer is not None
        outputs, kernel = [], weight.shape[-1]
        for rows, number, branches in current.texts:
            pending = current.layer.begin(number)
            own, kept = inputs[:, :, rows], pending.after_text.inputs
            tail = kept.get(current.convolution)
            if tail is None:
                tail = own.new_zeros(1, own.shape[1], kernel - 1)
            if chain := branches.chain:
                text = torch.cat((tail, own[:, :, :chain]), dim=2)
                outputs.append(function(text, weight, bias, activation=activation)[:, :, -chain:])
                tail = text[:, :, -(kernel - 1) :]
            kept[current.convolution] = tail
            if branches.count:
                nodes = own[:, :, chain:]
                if (earlier := pending.inputs.get(current.convolution)) is not None:
                    nodes = torch.cat((earlier, nodes), dim=2)
                pending.inputs[current.convolution] = nodes
                seen = torch.cat((tail, nodes), dim=2)[:, :, (branches.windows(kernel) + kernel - 1).view(-1)]
                seen = seen.view(seen.shape[1], branches.count, kernel).to(weight.dtype)
                out = (seen * weight[:, None, :]).sum(-1)
                out = out if bias is None else out + bias[:, None]
                outputs.append((out if activation is None else ACT2FN[activation](out)).to(inputs.dtype)[None])
        return torch.cat(outputs, dim=2)

    return over_rows
