"""An EAGLE-3 head (arXiv 2503.01840) as a transformers module: it predicts tokens from the target's hidden states.

Row i reads token i + 1 beside the target's hidden states at token i, taken after several of its layers and joined to
one vector by `fuse`. Where the target has not computed token i yet, because it is drafted, the head's own output at row
i - 1 takes the place of that vector. So each pass gives logits, and features for the rows below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from loaders.heads.eagle3_config import Eagle3Config
from loaders.modules.heads import HeadInputs

_LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "llama": (LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding),
    "qwen3": (Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding),
}


@dataclass(frozen=True)
class HeadOutput:
    """logits: [1, m, vocab] of the target's tokens, -inf for those that the head cannot propose.

    features: [1, n, hidden] that rows below read.
    """

    logits: Tensor
    features: Tensor


class JoiningLayer(nn.Module):
    """A decoder layer whose attention reads embedding and hidden state side by side, each normalized."""

    def __init__(self, config: PretrainedConfig, norm_before_residual: bool):
        super().__init__()
        layer_class, norm_class, _ = _LAYERS[config.model_type]
        layer = layer_class(config, 0)
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.hidden_norm = norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self._norm_before_residual = norm_before_residual
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(self.self_attn, name)
            has_bias = narrow.bias is not None
            setattr(self.self_attn, name, nn.Linear(2 * narrow.in_features, narrow.out_features, bias=has_bias))

    def forward(self, embedded: Tensor, hidden: Tensor, **attention: Any) -> Tensor:
        """All [1, n, hidden]."""
        normed = self.hidden_norm(hidden)
        residual = normed if self._norm_before_residual else hidden
        attended, _ = self.self_attn(
            hidden_states=torch.cat((self.input_layernorm(embedded), normed), dim=-1), **attention
        )
        hidden = residual + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Head(PreTrainedModel):
    """Attention is that of `config._attn_implementation`; the cache is any that transformers' layers take.

    Without `embed_tokens` or `lm_head` of its own it uses the target's, see `share`. `token_ids` int64 [draft vocab]
    says which of the target's tokens its own stand for; None: the same.
    """

    config_class = PretrainedConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self, config: PretrainedConfig, head: Eagle3Config, own_embeddings: bool = False, own_output: bool = True
    ):
        super().__init__(config)
        layer_class, norm_class, rotary_class = _LAYERS[config.model_type]
        hidden, eps = config.hidden_size, config.rms_norm_eps
        taps, width = len(head.taps), head.target_hidden_size
        self.head = head
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden) if own_embeddings else None
        self.lm_head = nn.Linear(hidden, head.draft_vocab_size, bias=False) if own_output else None
        self.input_norm = norm_class(taps * width, eps=eps) if head.norm_before_fc else None
        self.fc_norm = nn.ModuleList(norm_class(width, eps=eps) for _ in head.taps) if head.fc_norm else None
        self.fc = nn.Linear(taps * width, hidden, bias=False)
        further = (layer_class(config, number) for number in range(1, config.num_hidden_layers))
        self.layers = nn.ModuleList([JoiningLayer(config, head.norm_before_residual), *further])
        self.norm = norm_class(hidden, eps=eps)
        self.rotary_emb = rotary_class(config)
        self.token_ids: Tensor | None = None
        self.inputs = HeadInputs()
        self._shared: tuple[nn.Module | None, nn.Module | None] = (None, None)
        self.post_init()

    def share(self, embeddings: nn.Module, output: nn.Module) -> None:
        """Use the target's embeddings and output layer where the head has none of its own."""
        self._shared = embeddings, output

    def fuse(self, states: Tensor) -> Tensor:
        """[n, taps * target hidden], the target's hidden states side by side, to features [n, hidden]."""
        if self.input_norm is not None:
            states = self.input_norm(states)
        if self.fc_norm is not None:
            parts = states.chunk(len(self.fc_norm), dim=-1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts)], dim=-1)
        return self.fc(states)

    def embed(self, tokens: Tensor) -> Tensor:
        """The plain rows of the table, also of a target that scales them."""
        table = self.embed_tokens if self.embed_tokens is not None else self._shared[0]
        assert table is not None
        return F.embedding(tokens, table.weight)  # type: ignore[arg-type]

    def output(self, hidden: Tensor) -> Tensor:
        """Logits [..., draft vocab] from the layers' output, normalized already if `norm_output`."""
        layer = self.lm_head if self.lm_head is not None else self._shared[1]
        assert layer is not None
        return layer(hidden if self.head.norm_output else self.norm(hidden))

    def as_target_tokens(self, logits: Tensor) -> Tensor:
        """[..., draft vocab] to [..., vocab]."""
        if self.token_ids is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.head.vocab_size), -torch.inf)
        return whole.index_copy_(-1, self.token_ids, logits)

    def run_layers(self, embedded: Tensor, features: Tensor, positions: Tensor, masks: Any, cache: Any) -> Tensor:
        """The layers' output [b, n, hidden], the features of the rows below. masks: one for each layer."""
        rotations = self.rotary_emb(features, position_ids=positions)
        hidden = features
        for number, (layer, mask) in enumerate(zip(self.layers, masks)):
            attention = {"attention_mask": mask, "position_embeddings": rotations, "past_key_values": cache}
            hidden = layer(*((embedded, hidden) if number == 0 else (hidden,)), **attention)
        return self.norm(hidden) if self.head.norm_output else hidden

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        features: Tensor | None = None,
    ) -> HeadOutput:
        """input_ids, position_ids: int64 [1, n]. features: [1, n, hidden], from `fuse` or from the rows above; where
        they are not given, `inputs` has them."""
        if features is None:
            assert self.inputs.features is not None
            features = self.inputs.features[None]
        embedded = self.embed(input_ids)
        masks = self._masks(embedded, position_ids, past_key_values)
        hidden = self.run_layers(embedded, features, position_ids, masks, past_key_values)
        kept = hidden[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else hidden[:, -logits_to_keep:]
        return HeadOutput(self.as_target_tokens(self.output(kept)), hidden)

    def _masks(self, embedded: Tensor, positions: Tensor, cache: Any) -> list[Any]:
        kinds = getattr(self.config, "layer_types", None) or ["full_attention"] * len(self.layers)
        create = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        by_kind = {
            kind: create[kind](
                config=self.config,
                inputs_embeds=embedded,
                attention_mask=None,
                past_key_values=cache,
                position_ids=positions,
            )
            for kind in set(kinds)
        }
        return [by_kind[kind] for kind in kinds]


def build_eagle3(
    head: Eagle3Config,
    dtype: torch.dtype,
    attn_implementation: str,
    own_embeddings: bool = False,
    own_output: bool = True,
) -> Eagle3Head:
    """The module on the current default device, with weights as transformers initializes them."""
    config = AutoConfig.for_model(**head.layer)
    return Eagle3Head._from_config(
        config,
        head=head,
        own_embeddings=own_embeddings,
        own_output=own_output,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )
