"""Gemma 3n and 4: every layer has an embedding of its own, and the last ones take others' keys and values.

Gemma 4 has two kinds of attention with heads of their own, and may have experts beside its MLP. Gemma 3n's layers keep
several hidden states, of which each predicts all (AltUp).
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import EMBEDDINGS_AND_HEAD, Config, Divide, GgufArchitecture
from loaders.gguf.families.dense import scaled_full_attention, stated_layers
from loaders.gguf.families.expert_stacks import joined_experts
from loaders.gguf.families.names import GEMMA, QK_NORMS
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import BASES, factors

OWN_CACHES = 20  # layers of Gemma 3n with keys and values of their own, where files do not say so: llama.cpp's constant
NOT_ROTATED = 1e20  # a divisor of the frequency that stands for none; files have 1e30


def _gemma4(metadata: Metadata) -> Config:
    """Layers that see everything have wider heads, of which part is rotated, and may have no values but their keys."""
    kinds = stated_layers(metadata, 6)
    full = kinds.index("full_attention") if "full_attention" in kinds else 0
    wide, narrow = metadata.integer("attention.key_length"), metadata.integer("attention.key_length_swa")
    heads = metadata.kv_heads
    inner, shared = metadata.inners, _shared_caches(metadata)
    keys_are_values = f"blk.{full}.attn_v.weight" not in metadata.gguf.tensors
    per_layer = metadata.natural("embedding_length_per_layer_input", 0)
    return {
        "layer_types": kinds,
        "head_dim": narrow,
        "global_head_dim": wide,
        "num_key_value_heads": heads[kinds.index("sliding_attention") if "sliding_attention" in kinds else 0],
        "num_global_key_value_heads": heads[full] if len({*heads}) > 1 else None,
        "attention_k_eq_v": keys_are_values,
        "num_kv_shared_layers": shared,
        "intermediate_size": inner[0],
        "use_double_wide_mlp": inner[-1] == 2 * inner[0],
        "hidden_size_per_layer_input": per_layer,
        "vocab_size_per_layer_input": _rows(metadata),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "final_logit_softcapping": metadata.optional("final_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": _rotations(metadata, wide),
    }


def _rows(metadata: Metadata) -> int:
    """Of the layers' own embeddings; of the common one where there are none."""
    tensors = metadata.gguf.tensors
    return tensors.get("per_layer_token_embd.weight", tensors["token_embd.weight"]).values[0]


def _gemma4_experts(metadata: Metadata) -> Config:
    return {
        **_gemma4(metadata),
        "enable_moe_block": True,
        "num_experts": metadata.integer("expert_count"),
        "top_k_experts": metadata.integer("expert_used_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
    }


def _rotations(metadata: Metadata, width: int) -> Config:
    """Of wide heads a part is rotated, in the order of whole ones; the other frequencies are divided by 1e30."""
    rotated = 1.0
    if "rope_freqs.weight" in metadata.gguf.tensors:
        found = factors(metadata.gguf, "rope_freqs.weight")
        count = sum(factor == 1 for factor in found)
        if (
            len(found) != width // 2
            or any(factor != 1 for factor in found[:count])
            or not all(factor > NOT_ROTATED for factor in found[count:])
        ):
            raise ModelFilesError(f"{metadata.gguf.file}: rope_freqs.weight is not that of a Gemma 4 model.")
        rotated = count / len(found)
    full = {"rope_theta": metadata.real("rope.freq_base", 1_000_000.0, *BASES), "partial_rotary_factor": rotated}
    local = metadata.real("rope.freq_base_swa", 10_000.0, *BASES)
    return {
        "full_attention": {"rope_type": "proportional", **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _gemma3n(metadata: Metadata) -> Config:
    laurel = metadata.tensor("blk.0.laurel_l.weight")
    return {
        **scaled_full_attention(metadata),
        "layer_types": stated_layers(metadata, 5),
        "intermediate_size": metadata.inners,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": metadata.integer("attention.sliding_window"),
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0, least=1),
        "hidden_size_per_layer_input": metadata.integer("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": _rows(metadata),
        "num_kv_shared_layers": _shared_caches(metadata),
        "altup_active_idx": metadata.natural("altup.active_idx", 0),
        "altup_num_inputs": metadata.integer("altup.num_inputs"),
        "laurel_rank": laurel.values[0],
        "activation_sparsity_pattern": [_share_below(scale) for scale in metadata.reals("activation_sparsity_scale")],
    }


def _shared_caches(metadata: Metadata) -> int:
    """How many layers, the last ones, take the keys and values of others."""
    default = max(metadata.layers - OWN_CACHES, 0) if metadata.prefix == "gemma3n" else 0
    return metadata.natural("attention.shared_kv_layers", default)


def _share_below(scale: float) -> float:
    """Which share of a normal distribution lies below `scale` standard deviations, which files state instead."""
    return 0.0 if scale == -math.inf else round(NormalDist().cdf(scale), 6)


def _each(name: str) -> Divide:
    """Matrices in a stack, of which the model has a list."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        if len(tensor.values) != 3 or tensor.values[0] != metadata.integer("altup.num_inputs") - 1:
            raise ModelFilesError(
                f"{tensor.file}: {tensor.name} has shape {list(tensor.values)}, but must have a matrix for each hidden "
                "state but one. The file is damaged; download it again."
            )
        return [tensor.item(index).named(f"model.{name}.{index}.weight") for index in range(tensor.values[0])]

    return divide


def _of_layers_with_caches(name: str) -> Divide:
    """Keys and values, which the last layers take from others: files may hold some for those as well."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        if int(layer.split(".")[2]) >= metadata.layers - _shared_caches(metadata):
            return []
        return [tensor.named(f"{layer}self_attn.{name}.weight")]

    return divide


GEMMA4 = {
    **GEMMA,
    **QK_NORMS,
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
ROUTED = {
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
OUTSIDE = {
    **EMBEDDINGS_AND_HEAD,
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
WITH_CACHES = {"attn_k": "k_proj", "attn_v": "v_proj", "attn_k_norm": "k_norm"}
CACHED = {f"{ours}.weight": _of_layers_with_caches(name) for ours, name in WITH_CACHES.items()}
GEMMA3N = {
    **{ours: there for ours, there in GEMMA4.items() if ours != "layer_output_scale.weight"},
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}

GEMMA4_DENSE = GgufArchitecture(
    "gemma4_text", "Gemma4ForCausalLM", GEMMA4, _gemma4, outside=OUTSIDE, divided=CACHED, plain_attention=False
)
GEMMA4_EXPERTS = replace(
    GEMMA4_DENSE,
    layer={**GEMMA4, **ROUTED},
    settings=_gemma4_experts,
    divided={**CACHED, **joined_experts("experts")},
)
PER_LAYER_INPUTS = {
    "gemma3n": GgufArchitecture(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        GEMMA3N,
        _gemma3n,
        outside=OUTSIDE,
        divided=CACHED,
        divided_outside={
            "altup_proj.weight": _each("altup_projections"),
            "altup_unembd_proj.weight": _each("altup_unembed_projections"),
        },
    ),
    "gemma4": GEMMA4_DENSE,
}
