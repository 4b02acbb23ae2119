"""Lightning attention over trees (MiniMax-01, arXiv 2501.08313): states that decay at a fixed rate per head.

transformers computes it inside of the module's forward, and insists on a cache of a class of its own. The forward runs
unchanged, as for a text that begins; its attention's output is replaced where it enters the norm, by that of each row's
own text and path. What the forward computes in between takes the time of one block of attention. Its tables of decays
between the rows of a block take part in nothing else: computed ones (8 MB a layer of MiniMax-01) are let go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.minimax import modeling_minimax as minimax

from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.model.linear_attention.by_text import by_text
from offload_runtime.model.linear_attention.decayed_sums import over_tree
from offload_runtime.model.linear_attention.states import Branches, BranchingLayer, CurrentPass, current_pass
from offload_runtime.model.linear_attention.writes import Writes

_BLOCK = 256  # rows of text that are computed at once
_TABLES = ("query_decay", "key_decay", "diagonal_decay")


class LightningCache(TreeCache, minimax.MiniMaxCache):
    """A `TreeCache` that the model accepts as its own."""

    def get_linear_cache(self, layer_idx: int) -> None:
        """Always as for a text that begins."""
        current, layer = current_pass(), self.layers[layer_idx]
        assert current is not None and isinstance(layer, BranchingLayer)
        current.layer = layer

    def set_linear_cache(self, layer_idx: int, linear_cache: Any) -> None:
        """The state is kept by the layer."""

    def __len__(self) -> int:
        return len(self.layers)


def let_lightning_branch(model: nn.Module) -> type[TreeCache]:
    """Replace the output of each lightning attention in passes of this runtime. Returns the class of the cache."""
    for module in model.modules():
        if isinstance(module, minimax.MiniMaxLightningAttention):
            _Replaced(module).attach()
    return LightningCache


class _Replaced:
    """Of one module: what it projects is kept until its attention would go on to the norm."""

    def __init__(self, module: minimax.MiniMaxLightningAttention):
        self._module = module
        self._projected: Tensor | None = None

    def attach(self) -> None:
        for name in _TABLES:
            if not (table := self._module.get_buffer(name)).is_meta:
                self._module._buffers[name] = table.new_zeros(()).expand_as(table)
        self._module.qkv_proj.register_forward_hook(self._keep)
        self._module.norm.register_forward_pre_hook(self._replace)

    def _keep(self, projection: nn.Module, args: Any, output: Tensor) -> None:
        self._projected = output

    def _replace(self, norm: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        projected, self._projected, current = self._projected, None, current_pass()
        if current is None or projected is None:
            return None
        heads, width = self._module.num_attention_heads, self._module.head_dim
        values = self._module.act_fn(projected)[0].float().view(-1, heads, 3 * width).transpose(0, 1)
        attended = _attended(values, self._module.slope_rate.float().view(heads, 1), current)
        return (attended.flatten(2).to(args[0].dtype),)


def _attended(values: Tensor, rate: Tensor, current: CurrentPass) -> Tensor:
    """``[1, n, heads, width]`` from queries, keys and values ``[heads, n, 3 · width]``."""
    query, key, value = values.chunk(3, dim=-1)
    decay = -rate.expand(len(rate), query.shape[1])
    empty = query.new_zeros(len(query), query.shape[2], query.shape[2])

    def read(rows: slice, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        memory, outputs = empty if memory is None else memory, []
        for begin in range(rows.start, rows.stop, _BLOCK):
            piece = slice(begin, min(begin + _BLOCK, rows.stop))
            path = torch.arange(piece.stop - begin, device=query.device)
            q, k, v, g = (tensor[:, piece] for tensor in (query, key, value, decay))
            out, writes = over_tree(q, k, v, g, memory, path[:, None] >= path)
            memory = writes.state_after(memory, path)
            outputs.append(out.transpose(0, 1))
        return torch.cat(outputs)[None], memory

    def branch(
        rows: slice, memory: Tensor | None, branches: Branches, earlier: Writes | None
    ) -> tuple[Tensor, Writes, Tensor]:
        memory = empty if memory is None else memory
        q, k, v, g = (tensor[:, rows] for tensor in (query, key, value, decay))
        out, writes = over_tree(q, k, v, g, memory, branches.visible, earlier)
        return out.transpose(0, 1)[None], writes, memory

    return by_text(current, read, branch)
