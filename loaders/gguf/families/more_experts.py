"""Further mixtures of experts with ordinary attention."""

from __future__ import annotations

from loaders.gguf.families.architecture import Config, GgufArchitecture
from loaders.gguf.families.dense import rotated, stated_layers
from loaders.gguf.families.expert_stacks import joined_experts, joined_shared_expert
from loaders.gguf.families.experts import EXPERTS, GLM4_MOE, QWEN3_MOE, QWEN_EXPERTS, routed_by_sigmoid
from loaders.gguf.families.more_dense import HUNYUAN_NORMS, granite
from loaders.gguf.families.names import ATTENTION, LLAMA, MLP, MLP_NORM, NEXTN, QK_NORMS, ROUTER, SHARED_EXPERTS
from loaders.gguf.header import GgufFile, GgufTensor
from loaders.gguf.metadata import Metadata


def _granite_moe(metadata: Metadata) -> Config:
    return {
        **granite(metadata),
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
    }


def _granite_moe_shared(metadata: Metadata) -> Config:
    return {
        **_granite_moe(metadata),
        "shared_intermediate_size": metadata.integer("expert_shared_feed_forward_length"),
    }


def has_shared_expert(gguf: GgufFile) -> bool:
    """Whether all tokens of a Granite mixture go through an expert beside the others."""
    return any(name.endswith("ffn_up_shexp.weight") for name in gguf.tensors)


def _olmoe(metadata: Metadata) -> Config:
    return {
        **rotated(metadata),
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "clip_qkv": metadata.optional("attention.clamp_kqv"),
    }


def _dots1(metadata: Metadata) -> Config:
    return {
        **routed_by_sigmoid(metadata),
        **rotated(metadata),
        "sliding_window": None,
        "layer_types": ["full_attention"] * metadata.layers,
    }


def _ernie4_5_moe(metadata: Metadata) -> Config:
    """The width of shared experts is a multiple of that of the others."""
    inner, shared = metadata.integer("expert_feed_forward_length"), 0
    if metadata.optional("expert_shared_feed_forward_length") is not None:
        shared = metadata.natural("expert_shared_feed_forward_length", 0) // inner
    return {
        **rotated(metadata),
        "moe_num_experts": metadata.integer("expert_count"),
        "moe_k": metadata.integer("expert_used_count"),
        "moe_intermediate_size": inner,
        "moe_num_shared_experts": metadata.natural("expert_shared_count", shared),
        "moe_layer_start_index": metadata.natural("leading_dense_block_count", 1),
        "moe_layer_end_index": metadata.layers - 1,
        "moe_layer_interval": metadata.integer("interleave_moe_layer_step", 1),
    }


def _correction(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """A row, stored as a vector."""
    name = f"{layer}mlp.gate.moe_statics.e_score_correction_bias"
    return [tensor.named(name, shape=(1, tensor.values[-1]))]


def _hunyuan_moe(metadata: Metadata) -> Config:
    return {
        **rotated(metadata),
        "num_experts": metadata.integer("expert_count"),
        "moe_topk": metadata.integer("expert_used_count"),
        "intermediate_size": metadata.integer("expert_feed_forward_length", metadata.inner),
    }


def _exaone_moe(metadata: Metadata) -> Config:
    """Layers without a window rotate nothing."""
    routed = routed_by_sigmoid(metadata)
    del routed["n_routed_experts"], routed["n_shared_experts"]
    return {
        **rotated(metadata),
        **routed,
        "num_experts": metadata.integer("expert_count"),
        "num_shared_experts": metadata.integer("expert_shared_count"),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": stated_layers(metadata, 4),
    }


def _afmoe(metadata: Metadata) -> Config:
    """Embeddings are scaled as in all published models; layers without a window rotate nothing."""
    return {
        **rotated(metadata),
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "num_shared_experts": metadata.integer("expert_shared_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "num_dense_layers": metadata.natural("leading_dense_block_count", 0),
        "route_scale": metadata.real("expert_weights_scale", 1.0),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": stated_layers(metadata, 4),
        "mup_enabled": True,
    }


GRANITE_MOE = {**ATTENTION, **MLP_NORM, "ffn_gate_inp": "block_sparse_moe.router"}
DOTS1 = {**{ours: there for ours, there in GLM4_MOE.items() if ours != "post_attention_norm"}, **MLP_NORM}
AFMOE = {
    **ATTENTION,
    **QK_NORMS,
    **MLP,
    **SHARED_EXPERTS,
    "attn_gate": "self_attn.gate_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_mlp_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_gate_inp": "mlp.router.gate",
    "exp_probs_b.bias": "mlp.expert_bias",
}
HUNYUAN_MOE = {
    **ATTENTION,
    **MLP_NORM,
    **HUNYUAN_NORMS,
    "ffn_gate_inp": "mlp.gate.wg",
    **{ours: there.replace("shared_experts", "shared_mlp") for ours, there in SHARED_EXPERTS.items()},
}

GRANITE_MOE_SHARED = GgufArchitecture(
    "granitemoeshared",
    "GraniteMoeSharedForCausalLM",
    {**GRANITE_MOE, "ffn_down_shexp": "shared_mlp.output_linear"},
    _granite_moe_shared,
    divided={**joined_experts("block_sparse_moe.experts"), **joined_shared_expert("shared_mlp.input_linear")},
    paired=True,
)

MORE_EXPERTS = {
    "qwen3vlmoe": EXPERTS["qwen3moe"],
    "olmoe": GgufArchitecture("olmoe", "OlmoeForCausalLM", QWEN3_MOE, _olmoe, divided=QWEN_EXPERTS),
    "granitemoe": GgufArchitecture(
        "granitemoe",
        "GraniteMoeForCausalLM",
        GRANITE_MOE,
        _granite_moe,
        divided=joined_experts("block_sparse_moe.experts"),
        paired=True,
    ),
    "dots1": GgufArchitecture("dots1", "Dots1ForCausalLM", DOTS1, _dots1, divided=QWEN_EXPERTS),
    "exaone-moe": GgufArchitecture(
        "exaone_moe", "ExaoneMoeForCausalLM", {**DOTS1, **NEXTN}, _exaone_moe, divided=QWEN_EXPERTS, predicts=True
    ),
    "afmoe": GgufArchitecture("afmoe", "AfmoeForCausalLM", AFMOE, _afmoe, divided=QWEN_EXPERTS),
    "ernie4_5-moe": GgufArchitecture(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        {**LLAMA, **ROUTER, **SHARED_EXPERTS},
        _ernie4_5_moe,
        divided={**QWEN_EXPERTS, "exp_probs_b.bias": _correction},
    ),
    "hunyuan-moe": GgufArchitecture(
        "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", HUNYUAN_MOE, _hunyuan_moe, divided=QWEN_EXPERTS
    ),
}
