"""Mamba between layers of attention, or beside it."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import PLAIN, few_bits, gate_and_up
from tests.samples.gguf_families.dense import MULTIPLIERS, multipliers
from tests.samples.gguf_families.experts import granite_moe
from tests.samples.gguf_families.writing import Metadata, Sample

GROUPS = 2


def mamba2(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Values for each head are a column; the norm is a matrix of groups."""
    mixer, _, leaf = name.rpartition(".layers.")[2].partition(".")[2].partition(".")
    if name.endswith("dt_bias"):
        yield f"blk.{name.split('.')[2]}.ssm_dt.bias", tensor
    elif name.endswith("pre_ff_layernorm.weight"):
        yield f"blk.{name.split('.')[2]}.ffn_norm", tensor  # the converter's table has the whole name
    elif name.endswith(("A_log", ".D")):
        yield name, tensor.reshape(-1, 1)
    elif leaf == "norm.weight" and mixer in ("mamba", "mixer"):
        yield name, tensor.reshape(GROUPS, -1)
    else:
        yield name, tensor.squeeze() if name.endswith("conv1d.weight") else tensor


def mixer(config: PretrainedConfig) -> Metadata:
    return {
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        "ssm.time_step_rank": config.mamba_n_heads,
    }


def granite_hybrid(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    shared = "_shexp" if config.num_local_experts else ""
    if name.endswith("shared_mlp.input_linear.weight"):
        yield from gate_and_up(name, tensor.chunk(2, dim=0), shared)
    elif name.endswith("shared_mlp.output_linear.weight"):
        yield f"blk.{name.split('.')[2]}.ffn_down{shared}.weight", tensor
    else:
        yield from (mamba2 if ".mamba." in name else granite_moe)(config, name, tensor)


def granite_hybrid_metadata(config: PretrainedConfig) -> Metadata:
    shared = config.num_key_value_heads
    return {
        **multipliers(config),
        **mixer(config),
        "expert_shared_feed_forward_length": config.shared_intermediate_size,
        "attention.head_count_kv": [shared if kind == "full_attention" else 0 for kind in config.layer_types],
        "rope.scaling.finetuned": False,
    }


FALCON_MULTIPLIERS = {
    **{"lm_head_multiplier": 0.5, "embedding_multiplier": 2.0, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.7},
    **{"attention_in_multiplier": 1.1, "attention_out_multiplier": 0.9},
    **{"ssm_multipliers": [1.1, 0.9, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.6},
}


def falcon_h1_factor(config: PretrainedConfig, name: str) -> float | Tensor:
    """Its multipliers become part of the weights."""
    gate, down = config.mlp_multipliers
    factors = {
        "embed_tokens": config.embedding_multiplier,
        "lm_head": config.lm_head_multiplier,
        "gate_proj": gate,
        "down_proj": down,
        "q_proj": config.attention_in_multiplier,
        "k_proj": config.attention_in_multiplier * config.key_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
    }
    module = name.split(".")[-2]
    if module == "in_proj":
        inner, state = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        rows = torch.tensor([inner, inner, state, state, config.mamba_n_heads])
        return config.ssm_in_multiplier * torch.tensor(config.ssm_multipliers).repeat_interleave(rows)[:, None]
    return factors.get(module, 1.0)


def nemotron_h(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ".mixer.experts." in name:
        name = name.replace("backbone", "model").replace("mixer", "mlp")
    yield from mamba2(config, name, tensor)


def nemotron_h_metadata(config: PretrainedConfig) -> Metadata:
    kinds, shared = config.layers_block_type, config.num_key_value_heads
    width = config.moe_intermediate_size if "moe" in kinds else config.intermediate_size
    found = {
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "attention.head_count_kv": [shared if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [width if kind in ("mlp", "moe") else 0 for kind in kinds],
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
        "ssm.time_step_rank": config.mamba_num_heads,
        "expert_count": None,
        "expert_used_count": None,
    }
    if "moe" not in kinds:
        return found
    return {
        **found,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "moe_latent_size": config.moe_latent_size,
    }


def jamba(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ".experts." in name:
        name = name.replace("feed_forward", "mlp")
    yield name, tensor.squeeze() if name.endswith("conv1d.weight") else tensor


def jamba_metadata(config: PretrainedConfig) -> Metadata:
    shared = config.num_key_value_heads
    return {
        "attention.head_count_kv": [shared if kind == "full_attention" else 0 for kind in config.layer_types],
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.state_size": config.mamba_d_state,
        "ssm.time_step_rank": config.mamba_dt_rank,
        "attention.key_length": None,
        "attention.value_length": None,
    }


GRANITE_HYBRID = Sample(
    "granitemoehybrid",
    "granitehybrid",
    {"rope_parameters": PLAIN, "num_local_experts": 0, "shared_intermediate_size": 64, "mamba_n_groups": GROUPS}
    | MULTIPLIERS,
    granite_hybrid_metadata,
    granite_hybrid,
    few_bits,
)
MAMBA: dict[str, Sample] = {
    "granitehybrid": GRANITE_HYBRID,
    "granitehybrid with experts": replace(
        GRANITE_HYBRID,
        changes=GRANITE_HYBRID.changes
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    ),
    "falcon-h1": Sample(
        "falcon_h1",
        "falcon-h1",
        {"rope_parameters": PLAIN, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_n_groups": GROUPS}
        | FALCON_MULTIPLIERS,
        mixer,
        mamba2,
        few_bits,
        factor=falcon_h1_factor,
    ),
    "jamba": Sample("jamba", "jamba", {"num_hidden_layers": 4, "num_experts": 4}, jamba_metadata, jamba, few_bits),
    "nemotron_h": Sample("nemotron_h", "nemotron_h", {}, nemotron_h_metadata, nemotron_h, few_bits),
    "nemotron_h_moe": Sample(
        "nemotron_h",
        "nemotron_h_moe",
        {"layers_block_type": ["mamba", "attention", "moe", "mamba", "moe"], "n_routed_experts": 4}
        | {"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "moe_latent_size": 16}
        | {"routed_scaling_factor": 2.5},
        nemotron_h_metadata,
        nemotron_h,
        few_bits,
    ),
}
