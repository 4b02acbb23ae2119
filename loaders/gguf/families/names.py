"""transformers' names of the modules of a layer, by GGUF's."""

from __future__ import annotations

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
MLP_NORM = {"ffn_norm": "post_attention_layernorm"}
LATER_MLP_NORM = {"post_attention_norm": "post_attention_layernorm"}  # another name for the same
LLAMA = {**ATTENTION, **MLP_NORM, **MLP}
GEMMA = {
    **ATTENTION,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **MLP,
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
# Router, and what all tokens go through beside the experts.
ROUTER = {"ffn_gate_inp": "mlp.gate"}
SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
SHARED_EXPERT = {name: there.replace("experts", "expert") for name, there in SHARED_EXPERTS.items()}
CORRECTION_BIAS = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
# A head for multi-token prediction: what is around its layer.
NEXTN = {
    **{f"nextn.{name}": name for name in ("eh_proj", "enorm", "hnorm", "embed_tokens")},
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
