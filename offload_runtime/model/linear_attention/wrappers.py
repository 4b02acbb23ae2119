"""Wraps the functions over sequences that transformers' modules of the gated delta rule call.

In a pass of this runtime, the rows of text go to the function itself, and those of a tree to a form of it that follows
each node's own path. Outside of such a pass nothing changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from offload_runtime.model.linear_attention.delta_rule import over_tree
from offload_runtime.model.linear_attention.states import Branches, Pending, State, current_pass


def let_branch(model: nn.Module) -> None:
    """Wrap the functions over sequences of the modules that the model's layers come from, once."""
    wrappers: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
        "causal_conv1d_fn": _convolution,
        "torch_chunk_gated_delta_rule": _delta_rule,
        "torch_recurrent_gated_delta_rule": _delta_rule,
    }
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        for name, wrap in wrappers.items():
            function = getattr(module, name, None)
            if function is not None and not hasattr(function, "branches"):
                setattr(module, name, wrap(function))


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
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

    over_rows.branches = True  # type: ignore[attr-defined]
    return over_rows


def _delta_rule(function: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    @wraps(function)
    def over_rows(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        current = current_pass()
        if current is None:
            return function(query, key, value, g=g, beta=beta, **kwargs)
        assert current.layer is not None
        outputs = []
        for rows, number, branches in current.texts:
            pending = current.layer.begin(number)
            own = [tensor[:, rows] for tensor in (query, key, value, g, beta)]
            memory = pending.after_text.memory
            if chain := branches.chain:
                text = [tensor[:, :chain] for tensor in own]
                how = {**kwargs, "initial_state": None if memory is None else memory[None], "output_final_state": True}
                out, last = function(*text[:3], g=text[3], beta=text[4], **how)
                assert last is not None
                memory = last[0]
                outputs.append(out)
            if branches.count:
                nodes = [tensor[0, chain:] for tensor in own]
                out, memory = _tree(nodes, memory, branches, pending, kwargs.get("use_qk_l2norm_in_kernel", False))
                outputs.append(out[None].to(query.dtype))
            pending.after_text = State(pending.after_text.inputs, memory)
        return torch.cat(outputs, dim=1), None

    over_rows.branches = True  # type: ignore[attr-defined]
    return over_rows


def _tree(
    nodes: Sequence[Tensor], memory: Tensor | None, branches: Branches, pending: Pending, normalize: bool
) -> tuple[Tensor, Tensor]:
    """The outputs ``[n, heads, v]`` of a tree's nodes, and the state they begin with."""
    query, key, value, decay, beta = (tensor.transpose(0, 1).float() for tensor in nodes)
    groups = len(value) // len(key)
    query, key = query.repeat_interleave(groups, 0), key.repeat_interleave(groups, 0)
    if normalize:
        query, key = _unit(query), _unit(key)
    if memory is None:
        memory = value.new_zeros(len(value), key.shape[2], value.shape[2])
    query = query * query.shape[-1] ** -0.5
    outputs, pending.writes = over_tree(
        query, key, value, decay, beta, memory.float(), branches.visible, pending.writes
    )
    return outputs.transpose(0, 1), memory


def _unit(x: Tensor) -> Tensor:
    """As transformers' `l2norm`."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
