"""Gemma 4: two kinds of attention with heads of their own, an embedding for each layer, or experts beside its MLP."""

from __future__ import annotations

from dataclasses import replace

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import EMBEDDINGS_AND_HEAD, Config, Divide, GgufArchitecture
from loaders.gguf.families.dense import stated_layers
from loaders.gguf.families.expert_stacks import joined_experts
from loaders.gguf.families.names import GEMMA, QK_NORMS
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import BASES, factors

NOT_ROTATED = 1e20  # a divisor of the frequency that stands for none; files have 1e30


def _gemma4(metadata: Metadata) -> Config:
    """Layers that see everything have wider heads, of which part is rotated, and may have no values but their keys."""
    kinds = stated_layers(metadata, 6)
    full = kinds.index("full_attention") if "full_attention" in kinds else 0
    wide, narrow = metadata.integer("attention.key_length"), metadata.integer("attention.key_length_swa")
    heads = metadata.kv_heads
    inner, shared = metadata.inners, metadata.natural("attention.shared_kv_layers", 0)
    keys_are_values = f"blk.{full}.attn_v.weight" not in metadata.gguf.tensors
    per_layer = metadata.natural("embedding_length_per_layer_input", 0)
    rows = metadata.gguf.tensors.get("per_layer_token_embd.weight")
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
        "vocab_size_per_layer_input": rows.values[0] if rows else metadata.gguf.tensors["token_embd.weight"].values[0],
        "sliding_window": metadata.integer("attention.sliding_window"),
        "final_logit_softcapping": metadata.optional("final_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": _rotations(metadata, wide),
    }


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


def _of_layers_with_caches(name: str) -> Divide:
    """Keys and values, which the last layers take from others: files may hold some for those as well."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        shared = metadata.natural("attention.shared_kv_layers", 0)
        if int(layer.split(".")[2]) >= metadata.layers - shared:
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
DENSE = GgufArchitecture(
    "gemma4_text",
    "Gemma4ForCausalLM",
    GEMMA4,
    _gemma4,
    outside=OUTSIDE,
    divided={f"{ours}.weight": _of_layers_with_caches(name) for ours, name in WITH_CACHES.items()},
    plain_attention=False,
)
EXPERTS = replace(
    DENSE,
    layer={**GEMMA4, **ROUTED},
    settings=_gemma4_experts,
    divided={**DENSE.divided, **joined_experts("experts")},
)
