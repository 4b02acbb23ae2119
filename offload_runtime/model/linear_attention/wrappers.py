"""Wraps the functions over sequences that transformers' recurrent modules call.

In a pass of this runtime, the rows of text go to the function itself, and those of a tree to a form of it that follows
each node's own path. Outside of such a pass nothing changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.model.linear_attention.convolutions import over_convolution
from offload_runtime.model.linear_attention.ngrams import let_ngrams_branch
from offload_runtime.model.linear_attention.wrapped_delta_rule import over_channel_delta_rule, over_delta_rule
from offload_runtime.model.linear_attention.wrapped_state_space import over_state_space

_WRAPPERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "causal_conv1d_fn": over_convolution,
    "chunk_kimi_delta_attention": over_channel_delta_rule,
    "mamba2_chunk_scan": over_state_space,
    "recurrent_kimi_delta_attention": over_channel_delta_rule,
    "torch_chunk_gated_delta_rule": over_delta_rule,
    "torch_recurrent_gated_delta_rule": over_delta_rule,
}


def let_branch(model: nn.Module) -> type[TreeCache]:
    """Wrap the functions over sequences of the modules that the model's layers come from, once.

    Returns the class of the cache that the model takes.
    """
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    if any(hasattr(module, "MiniMaxCache") for module in modules):
        from offload_runtime.model.linear_attention import lightning  # imports transformers' module of that one model

        return lightning.let_lightning_branch(model)
    for module in modules:
        for name, wrap in _WRAPPERS.items():
            function = getattr(module, name, None)
            if function is not None and not hasattr(function, "branches"):
                wrapped = wrap(function)
                wrapped.branches = True  # type: ignore[attr-defined]
                setattr(module, name, wrapped)
    let_ngrams_branch(model)
    return TreeCache
