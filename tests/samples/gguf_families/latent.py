"""Multi-head latent attention: the projection from the latent is stored by heads, keys and values apart."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import PLAIN, YARN, as_it_is, experts, few_bits
from tests.samples.gguf_families.writing import Metadata, Sample


def latent(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Keys and values of every head apart, the keys' half transposed."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, tensor
        return
    layer = name.split(".")[2]
    heads = tensor.view(config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, -1)
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    yield f"blk.{layer}.attn_k_b.weight", keys.transpose(1, 2)
    yield f"blk.{layer}.attn_v_b.weight", values


def latent_metadata(config: PretrainedConfig) -> Metadata:
    keys = config.qk_nope_head_dim + config.qk_rope_head_dim
    multiplier = config.rope_parameters.get("mscale_all_dim")
    return {
        **experts(config),
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": keys,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.scaling.yarn_log_multiplier": 0.1 * multiplier if multiplier else None,
    }


def older_latent_metadata(config: PretrainedConfig) -> Metadata:
    """Before the halves were split: keys and values are stated as they are."""
    found = latent_metadata(config)
    keys, values = found.pop("attention.key_length_mla"), found.pop("attention.value_length_mla")
    return {
        **found,
        "attention.key_length": keys,
        "attention.value_length": values,
        "attention.head_count_kv": config.num_attention_heads,
    }


def kimi_linear(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ".experts." not in name:  # transformers writes this for the MLP of dense layers too
        name = name.replace("block_sparse_moe", "mlp")
    if name.endswith("dt_bias"):
        yield f"blk.{name.split('.')[2]}.ssm_dt.bias", tensor
    elif "_conv1d" in name:
        yield name, tensor.reshape(1, tensor.shape[0], 1, -1)
    else:
        yield from latent(config, name, tensor)


def kimi_linear_metadata(config: PretrainedConfig) -> Metadata:
    return {
        "attention.head_count_kv": [int(kind == "full_attention") for kind in config.layer_types],
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": None,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "kda.head_dim": config.linear_head_dim,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "leading_dense_block_count": config.mlp_layer_types.index("sparse"),
    }


LATENT: dict[str, Sample] = {
    "deepseek v3": Sample(
        "deepseek_v3",
        "deepseek2",
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "qk_nope_head_dim": 16, "kv_lora_rank": 32}
        | {"q_lora_rank": 32, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "v_head_dim": 8},
        latent_metadata,
        latent,
        lambda name: "IQ4_NL" if ".experts." in name else "Q8_0",
    ),
    "deepseek v3 before": Sample(
        "deepseek_v3", "deepseek2", {"rope_parameters": PLAIN, "q_lora_rank": None}, older_latent_metadata, as_it_is
    ),
    "deepseek v2": Sample(
        "deepseek_v2",
        "deepseek2",
        {"rope_parameters": PLAIN, "topk_method": "greedy", "norm_topk_prob": False},
        latent_metadata,
        latent,
    ),
    "kimi-linear": Sample(
        "kimi_linear",
        "kimi-linear",
        {"qk_nope_head_dim": 16, "kv_lora_rank": 32},
        kimi_linear_metadata,
        kimi_linear,
        few_bits,
    ),
}
