"""Mixtures of experts with ordinary attention."""

from __future__ import annotations

from loaders.gguf.families.architecture import Config, GgufArchitecture
from loaders.gguf.families.dense import alternating
from loaders.gguf.families.expert_stacks import SHARED_GATE, joined_experts
from loaders.gguf.families.names import (
    ATTENTION,
    CORRECTION_BIAS,
    LATER_MLP_NORM,
    MLP,
    MLP_NORM,
    NEXTN,
    QK_NORMS,
    ROUTER,
    SHARED_EXPERT,
    SHARED_EXPERTS,
)
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import linear_or_yarn, rotations

SIGMOID = 2  # of llama.cpp's functions that turn a router's outputs into weights


def _mixtral(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata),
        "sliding_window": None,
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
    }


def qwen_experts(metadata: Metadata) -> Config:
    """What is not of attention."""
    return {
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "norm_topk_prob": metadata.prefix != "qwen2moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen3_moe(metadata: Metadata) -> Config:
    return {"rope_parameters": rotations(metadata), **qwen_experts(metadata)}


def _qwen2_moe(metadata: Metadata) -> Config:
    shared = metadata.integer("expert_shared_feed_forward_length")
    return {**_qwen3_moe(metadata), "shared_expert_intermediate_size": shared, "use_sliding_window": False}


def _gpt_oss(metadata: Metadata) -> Config:
    """YaRN's border between slow and fast frequencies is not rounded in these models; GGUF files do not say so."""
    parameters = linear_or_yarn(metadata, 150_000.0)
    if parameters["rope_type"] == "yarn":
        parameters["truncate"] = False
    return {
        "rope_parameters": parameters,
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "intermediate_size": metadata.integer("expert_feed_forward_length", metadata.integer("feed_forward_length")),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": alternating(metadata.layers, 2),
        "attention_bias": True,
    }


def routed_by_sigmoid(metadata: Metadata) -> Config:
    """The experts of GLM, DeepSeek V3 and those that follow them."""
    return {
        "n_routed_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "n_shared_experts": metadata.integer("expert_shared_count", 1),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "first_k_dense_replace": metadata.natural("leading_dense_block_count", 0),
        "routed_scaling_factor": metadata.real("expert_weights_scale", 1.0),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "n_group": metadata.integer("expert_group_count", 1),
        "topk_group": metadata.integer("expert_group_used_count", 1),
    }


def _glm4_moe(metadata: Metadata) -> Config:
    return {
        **routed_by_sigmoid(metadata),
        "norm_topk_prob": metadata.flag("expert_weights_norm", True),
        "rope_parameters": rotations(metadata, partial=True),
        "attention_bias": "blk.0.attn_q.bias" in metadata.gguf.tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in metadata.gguf.tensors,
    }


def _minimax_m2(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata, partial=True),
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "intermediate_size": metadata.integer("expert_feed_forward_length"),
    }


def _llama4(metadata: Metadata) -> Config:
    """llama.cpp's constants, of the two models there are: every fourth layer sees all and rotates nothing.

    The larger model, of 128 experts, does not normalize queries and keys.
    """
    layers, step = metadata.layers, metadata.integer("interleave_moe_layer_step", 1)
    rotates = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    return {
        "rope_parameters": rotations(metadata),
        "intermediate_size": metadata.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": metadata.integer("feed_forward_length"),
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "interleave_moe_layer_step": step,
        "moe_layers": [*range(step - 1, layers, step)],
        "no_rope_layers": rotates,
        "layer_types": ["chunked_attention" if rotated else "full_attention" for rotated in rotates],
        "attention_chunk_size": metadata.integer("attention.chunk_size", 8192),
        "use_qk_norm": metadata.integer("expert_count") != 128,
        "attn_temperature_tuning": True,
    }


MIXTRAL = {**ATTENTION, **MLP_NORM, **ROUTER}
QWEN3_MOE = {**ATTENTION, **QK_NORMS, **MLP_NORM, **ROUTER}
QWEN2_MOE = {**ATTENTION, **MLP_NORM, **ROUTER, **SHARED_EXPERT}
GPT_OSS = {**ATTENTION, **LATER_MLP_NORM, "ffn_gate_inp": "mlp.router", "attn_sinks.weight": "self_attn.sinks"}
GLM4_MOE = {**ATTENTION, **QK_NORMS, **LATER_MLP_NORM, **MLP, **ROUTER, **SHARED_EXPERTS, **CORRECTION_BIAS}
MINIMAX_M2 = {
    **QWEN3_MOE,
    "exp_probs_b.bias": "mlp.e_score_correction_bias",
}
LLAMA4 = {
    **ATTENTION,
    **MLP_NORM,
    **{name: there.replace("mlp", "feed_forward") for name, there in {**MLP, **SHARED_EXPERT}.items()},
    "ffn_gate_inp": "feed_forward.router",
}
QWEN_EXPERTS = joined_experts()

EXPERTS = {
    "llama": GgufArchitecture("mixtral", "MixtralForCausalLM", MIXTRAL, _mixtral, divided=QWEN_EXPERTS, paired=True),
    "qwen2moe": GgufArchitecture(
        "qwen2_moe", "Qwen2MoeForCausalLM", QWEN2_MOE, _qwen2_moe, divided={**QWEN_EXPERTS, **SHARED_GATE}
    ),
    "qwen3moe": GgufArchitecture("qwen3_moe", "Qwen3MoeForCausalLM", QWEN3_MOE, _qwen3_moe, divided=QWEN_EXPERTS),
    "gpt-oss": GgufArchitecture(
        "gpt_oss", "GptOssForCausalLM", GPT_OSS, _gpt_oss, divided=joined_experts(interleaved=True, transposed=True)
    ),
    "glm4moe": GgufArchitecture(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {**GLM4_MOE, **NEXTN},
        _glm4_moe,
        divided=QWEN_EXPERTS,
        predicts=True,
    ),
    "minimax-m2": GgufArchitecture("minimax_m2", "MiniMaxM2ForCausalLM", MINIMAX_M2, _minimax_m2, divided=QWEN_EXPERTS),
    "llama4": GgufArchitecture(
        "llama4_text",
        "Llama4ForCausalLM",
        LLAMA4,
        _llama4,
        divided=joined_experts("feed_forward.experts", transposed=True),
    ),
}
