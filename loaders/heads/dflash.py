"""A DFlash block draft (arXiv 2602.06036) or DFlash 2 as a transformers module.

Its layers are Qwen3's. What they cache of the text comes from the target's hidden states (`absorb`), the same for all
layers, and not from rows of their own. Then one pass over a block, the text's last token and mask tokens after it,
gives a distribution for each of the next places. DFlash 2 has convolutions along the block, and a score for
each candidate after each token before it (`successors`), so that a place's distribution depends on its parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Config,
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

from loaders.heads.dflash_config import Dflash2Config, DflashConfig


@dataclass(frozen=True)
class BlockOutput:
    """logits: [1, m, vocab] of the target's tokens."""

    logits: Tensor


class BlockConvolution(nn.Module):
    """A short causal convolution along the block, before and after a sublayer, whose kernels depend on the row.

    base_kernel: [2, taps, hidden]. Each group of channels shares what is added to it for a row.
    """

    def __init__(self, hidden: int, second: Dflash2Config):
        super().__init__()
        self._taps, self._groups = second.kernel_size, hidden // second.group_size
        self.base_kernel = nn.Parameter(torch.empty(2, self._taps, hidden))
        self.kernel_projection = nn.Linear(hidden, 2 * self._taps * self._groups, bias=False)

    def before(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The sublayer's input [blocks, rows, hidden], and the kernels for `after`."""
        kernels = self.kernel_projection(hidden).view(*hidden.shape[:-1], 2, self._taps, self._groups)
        return self._convolved(hidden, kernels[..., 0, :, :], self.base_kernel[0]), kernels[..., 1, :, :]

    def after(self, hidden: Tensor, kernels: Tensor) -> Tensor:
        """The sublayer's output [blocks, rows, hidden]."""
        return self._convolved(hidden, kernels, self.base_kernel[1])

    def _convolved(self, hidden: Tensor, kernels: Tensor, base: Tensor) -> Tensor:
        groups = hidden.unflatten(-1, (self._groups, -1))
        out = torch.zeros_like(groups)
        for tap in range(min(self._taps, hidden.shape[1])):
            earlier = F.pad(groups[:, : groups.shape[1] - tap], (0, 0, 0, 0, tap, 0))
            out = out + earlier * (base[tap].view(self._groups, -1) + kernels[..., tap, :, None])
        return out.flatten(-2)


class CandidateSelector(nn.Module):
    """Scores of tokens after a token, at a place of the block: a product of three vectors."""

    def __init__(self, config: PretrainedConfig, second: Dflash2Config):
        super().__init__()
        self.predecessor_codebook = nn.Embedding(config.vocab_size, second.selector_rank)
        self.successor_codebook = nn.Embedding(config.vocab_size, second.selector_rank)
        self.hidden_projection = nn.Linear(config.hidden_size, second.selector_rank, bias=False)

    def forward(self, hidden: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
        """hidden: [m, hidden], of places. before: int64 [m]. candidates: int64 [m, k]. Returns [m, k]."""
        context = self.predecessor_codebook(before) * self.hidden_projection(hidden)
        return torch.einsum("mr,mkr->mk", context, self.successor_codebook(candidates))


class BlockLayer(nn.Module):
    """A Qwen3 decoder layer; in DFlash 2 with convolutions around attention and MLP."""

    def __init__(self, config: Qwen3Config, number: int, second: Dflash2Config | None):
        super().__init__()
        layer = Qwen3DecoderLayer(config, number)
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.attention_conv = BlockConvolution(config.hidden_size, second) if second else None
        self.mlp_conv = BlockConvolution(config.hidden_size, second) if second else None

    def forward(self, hidden: Tensor, block_rows: int, **attention: Any) -> Tensor:
        """[1, n, hidden], blocks of `block_rows` rows one after the other."""

        def around(convolution: BlockConvolution | None, rows: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
            if convolution is None:
                return sublayer(rows)
            convolved, kernels = convolution.before(rows.view(-1, block_rows, rows.shape[-1]))
            return convolution.after(sublayer(convolved.view_as(rows)).view_as(convolved), kernels).view_as(rows)

        def attend(rows: Tensor) -> Tensor:
            return self.self_attn(hidden_states=rows, **attention)[0]

        hidden = hidden + around(self.attention_conv, self.input_layernorm(hidden), attend)
        return hidden + around(self.mlp_conv, self.post_attention_layernorm(hidden), self.mlp)


class DflashHead(PreTrainedModel):
    """Attention is that of `config._attn_implementation`; the cache is any that transformers' layers take.

    Embeddings are the target's, and so is the output layer unless it has an own one, see `share`. `token_ids` int64
    [draft vocab] says which of the target's tokens its own stand for; None: the same.
    """

    config_class = PretrainedConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Qwen3Config, head: DflashConfig, own_output: bool = False):
        super().__init__(config)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.head = head
        self.layers = nn.ModuleList(
            BlockLayer(config, number, head.second) for number in range(config.num_hidden_layers)
        )
        self.fc = nn.Linear(len(head.taps) * hidden, hidden, bias=False)
        self.hidden_norm, self.norm = Qwen3RMSNorm(hidden, eps=eps), Qwen3RMSNorm(hidden, eps=eps)
        self.lm_head = nn.Linear(hidden, head.draft_vocab_size, bias=False) if own_output else None
        self.candidate_selector = CandidateSelector(config, head.second) if head.second else None
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self.block_rows = 0  # of each block of a pass; 0: it is one block
        self.states: Tensor | None = None  # of the latest pass, [rows, hidden]
        self.token_ids: Tensor | None = None
        self._shared: tuple[nn.Module | None, nn.Module | None] = (None, None)
        self.post_init()

    def share(self, embeddings: nn.Module, output: nn.Module) -> None:
        """Use the target's embeddings, and its output layer where the head has none of its own."""
        self._shared = embeddings, output

    def absorb(self, states: Tensor, positions: Tensor, cache: Any) -> None:
        """Cache n tokens of text: [n, taps * hidden], the target's states at them side by side; positions int64 [n]."""
        context = self.hidden_norm(self.fc(states))[None]
        cos, sin = self.rotary_emb(context, position_ids=positions[None])
        for number, layer in enumerate(self.layers):
            attention: Any = layer.self_attn
            shape = (1, len(states), -1, attention.head_dim)
            keys = attention.k_norm(attention.k_proj(context).view(shape)).transpose(1, 2)
            values = attention.v_proj(context).view(shape).transpose(1, 2)
            keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
            cache.update(keys, values, number)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> BlockOutput:
        """Blocks of `block_rows` rows, each the text's last token and mask tokens, int64 [1, rows], after their text.

        With "tree" attention the pass says which text a block belongs to; each is attended to from both sides.
        """
        table = self._shared[0]
        assert table is not None
        hidden = F.embedding(input_ids, table.weight) * self.head.embedding_scale  # type: ignore[arg-type]
        rotations = self.rotary_emb(hidden, position_ids=position_ids)
        masks = self._masks(hidden, past_key_values)
        rows = self.block_rows or hidden.shape[1]
        for layer, mask in zip(self.layers, masks):
            attention = {"attention_mask": mask, "position_embeddings": rotations, "past_key_values": past_key_values}
            hidden = layer(hidden, rows, **attention)
        hidden = self.norm(hidden)
        self.states = hidden[0]
        kept = hidden[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else hidden[:, -logits_to_keep:]
        return BlockOutput(self.logits(kept))

    def _masks(self, hidden: Tensor, cache: Any) -> list[Tensor]:
        create = ALL_MASK_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        rows = hidden.shape[1]
        keys, _ = cache.get_mask_sizes(rows, 0)
        by_kind: dict[tuple[int | None, bool], Tensor] = {}
        for kind in zip(self.head.windows, self.head.causal):
            if kind not in by_kind:
                by_kind[kind] = create(
                    batch_size=1,
                    q_length=rows,
                    kv_length=keys,
                    q_offset=keys - rows,
                    allow_is_causal_skip=False,
                    mask_function=_predicate(*kind),
                    dtype=hidden.dtype,
                    device=hidden.device,
                )
        return [by_kind[kind] for kind in zip(self.head.windows, self.head.causal)]

    def logits(self, states: Tensor) -> Tensor:
        """[..., hidden] to [..., vocab] of the target's tokens; -inf for those that the head cannot propose."""
        layer = self.lm_head if self.lm_head is not None else self._shared[1]
        assert layer is not None
        logits = layer(states) * self.head.multiplier
        if self.head.softcap is not None:
            logits = torch.tanh(logits / self.head.softcap) * self.head.softcap
        if self.token_ids is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.head.vocab_size), -torch.inf)
        return whole.index_copy_(-1, self.token_ids, logits)

    def successors(self, logits: Tensor, states: Tensor, places: Tensor, before: Tensor) -> Tensor:
        """The logits [m, vocab] after the tokens `before`, int64 [m], at `places` of the block, int64 [m].

        logits: [depth, vocab], of each place alone; states: [depth, hidden]. In DFlash these are the same after any
        token; in DFlash 2 only the likeliest tokens of a place are possible, and a token has part in which they are.
        """
        if self.candidate_selector is None or self.head.second is None:
            return logits.index_select(0, places)
        unary, candidates = logits.index_select(0, places).topk(self.head.second.selector_top_k)
        scores = unary + self.candidate_selector(states.index_select(0, places), before, candidates)
        whole = logits.new_full((len(places), logits.shape[1]), -torch.inf)
        return whole.scatter_(-1, candidates, scores.to(whole.dtype))


def _predicate(window: int | None, causal: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Which keys a row of a layer attends to, by their positions, in the form of transformers' mask functions."""

    def may_see(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        ahead = key - row
        allowed = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
        return allowed if window is None else allowed & (ahead.abs() < window)

    return may_see


def build_dflash(head: DflashConfig, dtype: torch.dtype, attn_implementation: str, own_output: bool) -> DflashHead:
    """The module on the current default device, with weights as transformers initializes them."""
    config = AutoConfig.for_model(**head.layer)
    return DflashHead._from_config(
        config, head=head, own_output=own_output, dtype=dtype, attn_implementation=attn_implementation
    )
