"""Tree attention, plugged into transformers' own modelling code.

Registered under the name "tree" both as an attention function and as a mask function. transformers calls the mask
function once per attention pattern (full, sliding, chunked) with its own predicate. The predicate is evaluated at
positions in the text instead of rows in the cache, and restricted to each row's ancestors. So a sliding window means
the same on a branch of a tree as on a plain sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from offload_runtime.model.rows import PaddedRows, PassRows, SharedRows

ATTENTION_NAME = "tree"
# Elements: the strides of a mask must be multiples of this, or the memory-efficient kernel copies it in each layer.
MASK_ALIGNMENT = 8


Rows = PassRows | SharedRows | PaddedRows

_current_rows: ContextVar[Rows] = ContextVar("current_rows")


def current_rows() -> Rows:
    """The rows of the pass that runs in this thread."""
    return _current_rows.get()


def rows_before() -> Tensor | None:
    """For each row of the current pass, its position minus its index in the pass.

    int64 [n]; None outside of passes.
    """
    rows = _current_rows.get(None)
    if rows is None:
        return None
    return rows.row_positions - torch.arange(len(rows.row_positions), device=rows.row_positions.device)


@contextmanager
def attending(rows: Rows) -> Iterator[None]:
    """Within the block, "tree" attention in this thread masks by `rows`."""
    token = _current_rows.set(rows)
    try:
        with _without_cudnn():
            yield
    finally:
        _current_rows.reset(token)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """PyTorch prefers cuDNN's attention on Hopper and Blackwell servers. cuDNN builds a plan for every new shape, in
    tens to hundreds of milliseconds, and here nearly every pass has a new number of keys."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def tree_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable,
    dtype: torch.dtype,
    device: torch.device,
    **kwargs: object,
) -> Tensor:
    """Additive mask ``[1, 1, q_length, kv_length]`` in `dtype`: 0 where a row may attend, -inf elsewhere.

    A view of memory whose rows are aligned. Where texts share the pass, the columns are the rows of the whole cache,
    for models whose attention is written out in their own code; a row may attend to those of its own text alone.
    """
    rows = _current_rows.get()
    assert batch_size == 1
    aligned = -(-kv_length // MASK_ALIGNMENT) * MASK_ALIGNMENT
    if isinstance(rows, SharedRows):
        mask = torch.full((1, 1, q_length, aligned), -torch.inf, dtype=dtype, device=device)[..., :kv_length]
        for text, (own, keys) in zip(rows.texts, rows.spans):
            mask[0, 0, own, keys].masked_fill_(text.allowed(mask_function), 0.0)
        return mask
    mask = torch.zeros(1, 1, q_length, aligned, dtype=dtype, device=device)[..., :kv_length]
    allowed = rows.allowed(mask_function)
    assert allowed.shape == (q_length, kv_length)
    return mask.masked_fill_(~allowed, -torch.inf)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of ``query [1, heads, n, d]`` over ``key, value [1, kv_heads, k, d]``; returns ``[1, n, heads, d]``.

    indices: int ``[1, n, top_k]``, the keys that an indexer has selected for each row; it saw the same mask, so those
    that the row may attend to come first. block_indices: bool ``[1, h, n, k]``, the keys in selected blocks, for as
    many groups of heads (`indexed_attention.key_blocks` gives them instead of transformers' own).
    Where texts share the pass, the keys are those of the whole cache, and each text attends to its own alone.
    """
    assert dropout == 0.0, "the runtime never trains"
    if indices is not None:
        attention_mask = _selected(attention_mask, indices.long()[:, None])
    if block_indices is not None:
        attention_mask = _in_blocks(attention_mask, block_indices, query.shape[1], key.shape[1])
    attend = partial(
        _attend, scale=query.shape[-1] ** -0.5 if scaling is None else scaling, softcap=softcap, sinks=s_aux
    )
    rows = _current_rows.get(None)
    if not isinstance(rows, SharedRows) or key.shape[2] > rows.width:  # then entries of all texts follow their keys
        return attend(query, key, value, attention_mask, position_bias), None
    assert position_bias is None
    texts = [
        attend(query[:, :, own], key[:, :, keys], value[:, :, keys], attention_mask[:, :, own, keys], None)
        for own, keys in rows.spans
    ]
    return torch.cat(texts, dim=1), None


def _selected(mask: Tensor, indices: Tensor) -> Tensor:
    """The additive mask ``[1, 1, n, k]`` at these keys, int64 ``[1, 1, n, top_k]``; -inf at all others."""
    return _closed(mask, 1).scatter_(-1, indices, mask.gather(-1, indices))


def _in_blocks(mask: Tensor, kept: Tensor, heads: int, kv_heads: int) -> Tensor:
    """The additive mask ``[1, 1, n, k]`` where keys are kept, bool ``[1, h, n, k]``; -inf at all others.

    For each head of keys, or, where these are fewer than the groups h, for each head.
    """
    of = kv_heads if kv_heads % kept.shape[1] == 0 else heads
    kept = kept.repeat_interleave(of // kept.shape[1], dim=1)
    chosen = _closed(mask, of)
    return torch.where(kept, mask, chosen, out=chosen)


def _closed(mask: Tensor, heads: int) -> Tensor:
    """-inf ``[1, heads, n, k]``, a view of memory whose rows are aligned as those of the mask ``[1, 1, n, k]``."""
    rows, keys = mask.shape[-2:]
    aligned = -(-keys // MASK_ALIGNMENT) * MASK_ALIGNMENT
    return mask.new_full((1, heads, rows, aligned), -torch.inf)[..., :keys]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    position_bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The query heads that share a key head become the batch dimension, over which keys, values and mask are broadcast
    without a copy: PyTorch's fused kernels do not support grouped heads together with a mask."""
    _, heads, n, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query.view(kv_heads, group, n, head_dim).transpose(0, 1)
    key, value = key.expand(group, -1, -1, -1), value.expand(group, -1, -1, -1)
    if mask.shape[1] == heads > kv_heads:
        mask = mask.view(kv_heads, group, n, -1).transpose(0, 1)
    if position_bias is not None:
        mask = mask + position_bias.expand(1, heads, -1, -1).view(kv_heads, group, n, -1).transpose(0, 1)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    else:
        sinks = None if sinks is None else sinks.view(kv_heads, group).T[:, :, None, None]
        out = _plain_attention(query, key, value, mask, scale, softcap, sinks)
    return out.permute(2, 1, 0, 3).reshape(1, n, heads, value.shape[-1])


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention written out, for models that cap scores (Gemma 2) or let a sink take part of the weight (gpt-oss)."""
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = (scores + mask).float()
    if sinks is not None:
        scores = torch.cat((scores, sinks.float().expand(*scores.shape[:3], 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return weights @ value


AttentionInterface.register(ATTENTION_NAME, tree_attention)
AttentionMaskInterface.register(ATTENTION_NAME, tree_mask)
