"""Decoder families of transformers that are tested, with what makes a tiny model of each; on top of `tiny_models.BASE`.

docs/architectures.md lists these names (`test_architectures.py` compares). Families that the installed transformers
does not know yet are left out by the tests.
"""

from typing import Any

Changes = dict[str, Any]

# Borders lie within the texts of the tests: windows, chunks, and lengths at which attention is scaled anew.
BORDER = 8
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_WINDOWS = {"sliding_window": BORDER, **_MIXED}
_CHUNKS = dict.fromkeys(("chunk_size", "mamba_chunk_size"), BORDER)
FEW_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "decoder_sparse_step": 1,
}
LATENT = {
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "num_key_value_heads": 4},
}
_SHARED_CACHES = {  # the last layer reads the keys of another one
    "num_kv_shared_layers": 1,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "sliding_window": BORDER,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}

ATTENTION: dict[str, Changes] = {
    **{
        name: {} for name in
        ("apertus", "arcee", "biogpt", "bitnet", "cohere", "ctrl", "diffllama", "ernie4_5", "gemma", "glm",
         "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "granite", "helium",
         "hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama", "nanochat", "nemotron",
         "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm")
    },
    **dict.fromkeys(
        ("cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "granite_swa", "ministral", "mistral", "olmo3",
         "vaultgemma"),
        _WINDOWS,
    ),
    "codegen": {"rotary_dim": 4},
    "gemma3n_text": {**_SHARED_CACHES, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 3},
    "gemma4_text": {**_SHARED_CACHES, "global_head_dim": 8},
    "ministral3": {
        "sliding_window": BORDER,
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 16.0, "llama_4_scaling_beta": 0.5},
            "original_max_position_embeddings": BORDER,
        },
    },
    "starcoder2": {"sliding_window": BORDER},
    "minicpm3": {**LATENT, "head_dim": 16},
    "modernbert-decoder": {"pad_token_id": 0, "local_attention": 2 * BORDER},
    "xglm": {"attention_heads": 4, "num_layers": 3, "ffn_dim": 64, "d_model": 32},
    "youtu": LATENT,
}  # fmt: skip

EXPERTS: dict[str, Changes] = {
    **dict.fromkeys(
        ("aria_text", "ernie4_5_moe", "flex_olmo", "glm4_moe", "granitemoe", "granitemoeshared", "hunyuan_v1_moe",
         "hy_v3", "jetmoe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "solar_open"),
        FEW_EXPERTS,
    ),
    **dict.fromkeys(
        ("afmoe", "cohere2_moe", "dots1", "exaone_moe", "gpt_oss", "granitemoe_swa", "laguna", "mellum"),
        FEW_EXPERTS | _WINDOWS,
    ),
    "axk1": {**FEW_EXPERTS, **LATENT},
    "deepseek_v2": {**FEW_EXPERTS, **LATENT},
    "deepseek_v3": {**FEW_EXPERTS, **LATENT},
    "glm4_moe_lite": {**FEW_EXPERTS, **LATENT, "head_dim": 16},
    "llama4_text": {
        **FEW_EXPERTS,
        **{"attention_chunk_size": BORDER, "floor_scale": BORDER, "attn_scale": 0.5, "no_rope_layers": [1, 0, 1]},
    },
    "mimo_v2_flash": {**FEW_EXPERTS, "sliding_window": BORDER},
}  # fmt: skip

# The selection changes within the texts of the tests. Real indexers have dozens of heads; with two, scores are often 0,
# and which of several equal ones is selected is left to chance.
INDEX: Changes = {**FEW_EXPERTS, **LATENT, "index_topk": BORDER, "index_head_dim": 16, "index_n_heads": 16}

INDEXED: dict[str, Changes] = {
    **dict.fromkeys(("axk2", "deepseek_v32"), INDEX),
    "deepseek_v4": {
        **{**FEW_EXPERTS, "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 24},
        **{"qk_rope_head_dim": 8, "sliding_window": BORDER, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2},
        **{"index_n_heads": 16, "index_head_dim": 16, "index_topk": 3, "num_hash_layers": 1},
        "layer_types": [
            *("heavily_compressed_attention", "compressed_sparse_attention"),
            *("sliding_attention", "compressed_sparse_attention"),
        ],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": BORDER},
    },
    "dots3_note_text": {
        **INDEX,
        **{"num_hidden_layers": 4, "sliding_window": BORDER, "shared_experts_intermediate_size": 16},
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 2),
        **{"swa_q_lora_rank": 24, "swa_kv_lora_rank": 16},
        **{"swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    },
    "glm_moe_dsa": {**INDEX, "indexer_types": ["full", "shared", "full"]},
    "minimax_m3_vl_text": {
        **{**FEW_EXPERTS, "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2},
        **{"index_local_blocks": 1, "rotary_dim": 8, "dense_intermediate_size": 64, "shared_intermediate_size": 16},
        **{"intermediate_size": 16, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    },
    "hy_v4": {**INDEX, "indexer_types": ["full", "shared", "full"]},
}

# Models whose recurrent state cannot branch over a tree: streamed, and decoded plainly.
STATES: dict[str, Changes] = {
    "falcon_mamba": {"state_size": 4},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2},
        **{"mamba_d_state": 4, "use_mamba_kernels": False},
    },
    "mamba": {"state_size": 4},
    "recurrent_gemma": {"attention_window_size": BORDER},
}

# Models whose recurrent layers follow the branches of a tree.
BRANCHING: dict[str, Changes] = {
    "bamba": {**_CHUNKS, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "bailing_hybrid": {
        **FEW_EXPERTS,
        **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4},
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "falcon_h1": {**_CHUNKS, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_CHUNKS,
        **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "shared_intermediate_size": 16},
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "kimi_linear": {
        **FEW_EXPERTS,
        **LATENT,
        **{"q_lora_rank": None, "linear_num_heads": 4, "linear_head_dim": 8},
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {**FEW_EXPERTS, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm3": {"sliding_window": BORDER, "layer_types": ["conv", "sliding_attention", "full_attention"]},
    "mamba2": {**_CHUNKS, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": {
        **FEW_EXPERTS,
        **{"block_size": BORDER, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    },
    "nemotron_h": {
        **_CHUNKS,
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba", "attention"],
        **{"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2},
    },
    "olmo_hybrid": {},
    "qwen3_5_moe_text": {**FEW_EXPERTS, **_LINEAR},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {**FEW_EXPERTS, **_LINEAR},
    "qwen4_exp_text": {
        **{**FEW_EXPERTS, **_LINEAR, "num_hidden_layers": 4, "hc_count": 2, "hc_lowrank": 8},
        **{"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": BORDER},
        **{"indexer_compress_ratio": 4, "ple_layer_ids": [1, 3], "ple_embed_dim": 32, "heads_per_ngram": 2},
        **{
            "ngram_vocab_size_base": 101,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 4,
            "eos_token_id": 41,
        },
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
    },
    "zamba2": {
        **_CHUNKS,
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid"],
        **{"mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_d_state": 8, "initializer_range": 0.3},
    },
}

SWEEP: dict[str, Changes] = {**ATTENTION, **EXPERTS, **INDEXED, **STATES, **BRANCHING}
