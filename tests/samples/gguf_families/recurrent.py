"""Layers that carry a state: the gated delta rule and short convolutions."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import HALF, PLAIN, few_bits, offset_norms
from tests.samples.gguf_families.writing import Metadata, Sample

LAYERS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
MROPE = {"mrope_section": [1, 1, 0], "mrope_interleaved": True}


def delta_rule(config: PretrainedConfig) -> Metadata:
    rotated = config.rope_parameters.get("partial_rotary_factor", 1.0)
    return {
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
        "full_attention_interval": 2,
        "rope.dimension_count": int(config.head_dim * rotated),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": getattr(config, "shared_expert_intermediate_size", None),
    }


def qwen3_next(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if "in_proj_qkvz" in name:
        layer = name.split(".")[2]
        each = config.linear_num_value_heads // config.linear_num_key_heads * config.linear_value_head_dim
        heads = tensor.view(config.linear_num_key_heads, -1, tensor.shape[1])
        parts = heads.split([config.linear_key_head_dim] * 2 + [each] * 2, dim=1)
        query, key, value, gate = (part.reshape(-1, tensor.shape[1]) for part in parts)
        yield f"blk.{layer}.attn_qkv.weight", torch.cat([query, key, value])
        yield f"blk.{layer}.attn_gate.weight", gate
    elif name.endswith("dt_bias"):
        yield f"blk.{name.split('.')[2]}.ssm_dt.bias", tensor
    else:
        yield name, tensor.squeeze() if "conv1d" in name or "shared_expert_gate" in name else tensor


def qwen3_next_as_it_was(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield from [(name, tensor)] if "in_proj_qkvz" in name else qwen3_next(config, name, tensor)


def qwen35(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    groups, heads = config.linear_num_key_heads, config.linear_num_value_heads
    before = 2 * groups * config.linear_key_head_dim

    def tiled(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (groups, heads // groups, -1)).transpose(0, 1).flatten(0, 2)

    if "in_proj_qkv." in name or "conv1d" in name:
        rows = tensor.squeeze(1) if "conv1d" in name else tensor
        yield name, torch.cat([rows[:before], tiled(rows[before:])])
    elif "out_proj" in name:
        yield name, tiled(tensor.T).T
    elif name.endswith("dt_bias"):
        yield f"blk.{name.split('.')[2]}.ssm_dt.bias", tiled(tensor)
    elif any(part in name for part in ("in_proj_z", "in_proj_a", "in_proj_b", "A_log")):
        yield name, tiled(tensor)
    else:
        yield name, tensor.squeeze() if "shared_expert_gate" in name else tensor


def qwen35_metadata(config: PretrainedConfig) -> Metadata:
    return {**delta_rule(config), "rope.dimension_sections": [*config.rope_parameters["mrope_section"], 0]}


def lfm2(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if found := re.search(r"feed_forward\.experts\.w([123])\.weight", name):
        name = f"blk.{name.split('.')[2]}.ffn_{('gate', 'down', 'up')[int(found[1]) - 1]}_exps.weight"
    yield name, tensor.squeeze(1) if name.endswith("conv.conv.weight") else tensor


def lfm2_metadata(config: PretrainedConfig) -> Metadata:
    heads = [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types]
    return {
        "attention.head_count_kv": heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "shortconv.l_cache": config.conv_L_cache,
        "leading_dense_block_count": getattr(config, "num_dense_layers", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_gating_func": 2 if hasattr(config, "num_experts") else None,
    }


RECURRENT: dict[str, Sample] = {
    "qwen3next": Sample(
        "qwen3_next",
        "qwen3next",
        {**HALF, **LAYERS, "norm_topk_prob": True, "linear_num_value_heads": 8},
        delta_rule,
        qwen3_next,
        few_bits,
        offset_norms,
    ),
    "qwen3next before": Sample(
        "qwen3_next", "qwen3next", {**HALF, **LAYERS}, delta_rule, qwen3_next_as_it_was, plus_one=offset_norms
    ),
    "qwen35": Sample(
        "qwen3_5_text",
        "qwen35",
        {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5, **MROPE}, **LAYERS, "linear_num_value_heads": 6},
        qwen35_metadata,
        qwen35,
        few_bits,
        offset_norms,
    ),
    "qwen35moe": Sample(
        "qwen3_5_moe_text",
        "qwen35moe",
        {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5, **MROPE}, **LAYERS},
        lambda c: {**qwen35_metadata(c), "feed_forward_length": None},
        qwen35,
        few_bits,
        offset_norms,
    ),
    "lfm2": Sample(
        "lfm2", "lfm2", {"rope_parameters": PLAIN, "block_auto_adjust_ff_dim": False}, lfm2_metadata, lfm2, few_bits
    ),
    "lfm2moe": Sample(
        "lfm2_moe",
        "lfm2moe",
        {"rope_parameters": PLAIN, "num_dense_layers": 1, "tie_word_embeddings": True},
        lfm2_metadata,
        lfm2,
        few_bits,
    ),
}
