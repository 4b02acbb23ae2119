"""Decoder families of transformers that are tested, with what makes a tiny model of each; on top of `tiny_models.BASE`.

docs/architectures.md lists these names (`tests/test_architectures.py` compares). Families that the installed
transformers does not know yet are left out by the tests.
"""

from typing import Any

Changes = dict[str, Any]

_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "decoder_sparse_step": 1,
}
_LATENT = {
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "num_key_value_heads": 4},
}
_SHARED_CACHES = {  # the last layer reads the keys of another one
    "num_kv_shared_layers": 1,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["full_attention"] * 3,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}

ATTENTION: dict[str, Changes] = {
    **{
        name: {} for name in
        ("apertus", "arcee", "biogpt", "bitnet", "cohere", "ctrl", "cwm", "diffllama", "ernie4_5", "gemma", "glm",
         "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "granite", "helium",
         "hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama", "nanochat", "nemotron",
         "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm",
         "vaultgemma")
    },
    **dict.fromkeys(
        ("cohere2", "exaone4", "gemma2", "gemma3_text", "granite_swa", "ministral", "mistral", "olmo3"),
        _WINDOWS,
    ),
    "codegen": {"rotary_dim": 4},
    "gemma3n_text": {**_SHARED_CACHES, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 3},
    "gemma4_text": _SHARED_CACHES,
    "ministral3": {"sliding_window": 8},
    "starcoder2": {"sliding_window": 8},
    "minicpm3": {**_LATENT, "head_dim": 16},
    "modernbert-decoder": {"pad_token_id": 0},
    "xglm": {"attention_heads": 4, "num_layers": 3, "ffn_dim": 64, "d_model": 32},
    "youtu": _LATENT,
}  # fmt: skip

EXPERTS: dict[str, Changes] = {
    **dict.fromkeys(
        ("afmoe", "aria_text", "cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "gpt_oss",
         "granitemoe", "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "jetmoe", "laguna",
         "llama4_text", "mellum", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "solar_open"),
        _EXPERTS,
    ),
    "axk1": {**_EXPERTS, **_LATENT},
    "deepseek_v2": {**_EXPERTS, **_LATENT},
    "deepseek_v3": {**_EXPERTS, **_LATENT},
    "glm4_moe_lite": {**_EXPERTS, **_LATENT, "head_dim": 16},
    "mimo_v2_flash": _EXPERTS,
}  # fmt: skip

# Models that carry a state from token to token: streamed, and decoded plainly.
STATES: dict[str, Changes] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 4},
    "granitemoehybrid": {
        **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "shared_intermediate_size": 16},
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2},
        **{"mamba_d_state": 4, "use_mamba_kernels": False},
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba", "attention"],
        **{"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
    },
    "olmo_hybrid": {},
    "qwen3_5_moe_text": {**_EXPERTS, **_LINEAR},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {**_EXPERTS, **_LINEAR},
    "recurrent_gemma": {},
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid"],
        **{"mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_d_state": 8},
    },
}

SWEEP: dict[str, Changes] = {**ATTENTION, **EXPERTS, **STATES}
