"""LFM2 and its mixtures: layers of attention between layers that convolve each channel with the last few tokens."""

from __future__ import annotations

from loaders.gguf.families.architecture import Config, Divide, GgufArchitecture
from loaders.gguf.families.dense import rotated
from loaders.gguf.families.expert_stacks import joined_experts
from loaders.gguf.families.experts import SIGMOID
from loaders.gguf.families.names import ATTENTION
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata


def _lfm2(metadata: Metadata) -> Config:
    """Layers without heads of keys and values are convolutions."""
    heads = metadata.kv_heads[: metadata.layers]
    return {
        **rotated(metadata),
        "norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": metadata.integer("shortconv.l_cache"),
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2_moe(metadata: Metadata) -> Config:
    config = _lfm2(metadata)
    del config["block_auto_adjust_ff_dim"]
    return {
        **config,
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "num_dense_layers": metadata.natural("leading_dense_block_count", 0),
        "use_expert_bias": metadata.integer("expert_gating_func", SIGMOID) == SIGMOID,
    }


def kernel_of_each_channel(module: str) -> Divide:
    """Of a convolution of each channel by itself: [channels, length], in the model [channels, 1, length]."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        channels, length = tensor.values[0], tensor.values[-1]
        return [tensor.named(f"{layer}{module}.weight", shape=(channels, 1, length))]

    return divide


LFM2 = {
    **ATTENTION,
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_ROUTED = {"ffn_gate_inp": "feed_forward.gate", "exp_probs_b.bias": "feed_forward.expert_bias"}
_OUTSIDE = {"token_embd": "model.embed_tokens", "token_embd_norm": "model.embedding_norm", "output": "lm_head"}
_CONVOLVED = {"shortconv.conv.weight": kernel_of_each_channel("conv.conv")}

LFM2_DENSE = GgufArchitecture("lfm2", "Lfm2ForCausalLM", LFM2, _lfm2, outside=_OUTSIDE, divided=_CONVOLVED)
LFM2_EXPERTS = GgufArchitecture(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    {**LFM2, **_ROUTED},
    _lfm2_moe,
    outside=_OUTSIDE,
    divided={**_CONVOLVED, **joined_experts("feed_forward.experts")},
)
