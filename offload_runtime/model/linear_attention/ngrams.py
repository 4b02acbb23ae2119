"""Layers that look up n-grams of tokens (Qwen4-exp) over a tree: the tokens of each node's own path.

Their modules hash the last tokens, look the hashes up in a table (`loaders.modules.row_tables`), and blend the result
in by a dilated convolution. Two of their methods are replaced by forms that follow paths; all else runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from offload_runtime.model.linear_attention.convolutions import over_windows
from offload_runtime.model.linear_attention.states import current_pass

# The cache numbers a layer's last inputs: 0 and 1 are its convolutions', 2 its tokens'. Tokens are kept once for every
# distance that is looked back, so that each look keeps as many as it needs.
_TOKENS = 2


def let_ngrams_branch(model: nn.Module) -> None:
    """Let every layer of the model that looks up n-grams follow the paths of a tree."""
    of_layers: Iterable[Any] = model.modules()
    for module in of_layers:
        if hasattr(module, "_shift_right_ignore_eos"):
            module._shift_right_ignore_eos = _shift_along_paths(module, module._shift_right_ignore_eos)
        if hasattr(module, "_short_conv") and hasattr(module, "short_conv_state_len"):
            module._short_conv = _dilated_convolution(module, module._short_conv)


def _shift_along_paths(module: Any, shift_text: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    end, context = module.eos_token_id, module.context_len

    def shifted(history: Tensor, shift: int) -> Tensor:
        """Each row's token `shift` places earlier, int64 ``[1, context + rows]``; an end token if one lies between."""
        current = current_pass()
        if current is None or shift == 0:
            return shift_text(history, shift)

        def of_text(text: Tensor) -> Tensor:
            return shift_text(text[0], shift)[None, :, shift:]

        def of_nodes(seen: Tensor) -> Tensor:
            ended = (seen[:, :, :-1] == end).any(dim=2)
            return seen[:, :, 0].masked_fill(ended, end)

        current.convolution = _TOKENS + shift
        tokens = over_windows(current, history[None, :, context:], shift + 1, of_text, of_nodes, before=end)
        return F.pad(tokens[0], (context, 0), value=end)

    return shifted


def _dilated_convolution(module: Any, convolve: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    width = module.short_conv_state_len + 1

    def convolved(hidden: Tensor, cache: Any) -> Tensor:
        """``[1, rows, channels]`` to the same."""
        current = current_pass()
        if current is None:
            return convolve(hidden, cache)
        inputs = cache.update_conv_state(hidden.mT, module.layer_idx, state_idx=1, conv_kernel_size=width - 1)
        convolution = module.conv1d
        dilation = convolution.dilation[0]

        def of_text(text: Tensor) -> Tensor:
            return F.silu(convolution(text))

        def of_nodes(seen: Tensor) -> Tensor:
            return F.silu((seen[:, :, ::dilation] * convolution.weight).sum(-1))

        return over_windows(current, inputs, width, of_text, of_nodes).mT

    return convolved
