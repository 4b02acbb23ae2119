"""Mixtures of experts with ordinary attention, whose matrices are split, transposed or interleaved."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import (
    HALF,
    PLAIN,
    YARN,
    as_it_is,
    experts,
    few_bits,
    gate_and_up,
    in_pairs,
    nothing,
    rotary_part,
)
from tests.samples.gguf_families.dense import MULTIPLIERS, multipliers, sections
from tests.samples.gguf_families.writing import Metadata, Sample


def gpt_oss(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ".experts." not in name:
        yield name, tensor
        return
    layer, bias = name.split(".")[2], name.endswith("_bias")
    rows = tensor if bias else tensor.transpose(1, 2)
    suffix = "bias" if bias else "weight"
    if "gate_up" in name:
        yield f"blk.{layer}.ffn_gate_exps.{suffix}", rows[:, ::2]
        yield f"blk.{layer}.ffn_up_exps.{suffix}", rows[:, 1::2]
    else:
        yield f"blk.{layer}.ffn_down_exps.{suffix}", rows


def llama4(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    layer = name.split(".")[2] if "layers" in name else ""
    if name.endswith("experts.gate_up_proj"):
        gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
        yield f"blk.{layer}.ffn_gate_exps.weight", gate
        yield f"blk.{layer}.ffn_up_exps.weight", up
    elif name.endswith("experts.down_proj"):
        yield f"blk.{layer}.ffn_down_exps.weight", tensor.transpose(1, 2)
    else:
        yield name, tensor


def granite_moe(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("input_linear.weight"):
        yield from gate_and_up(name, tensor.chunk(2, dim=1), "_exps")
    else:
        yield from in_pairs(config, name, tensor)


def granite_moe_shared(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("shared_mlp.input_linear.weight"):
        yield from gate_and_up(name, tensor.chunk(2, dim=0), "_shexp")
    else:
        yield from granite_moe(config, name, tensor)


def exaone_moe(config: PretrainedConfig) -> Metadata:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.num_shared_experts,
        "expert_shared_feed_forward_length": config.moe_intermediate_size * config.num_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "leading_dense_block_count": config.mlp_layer_types.index("sparse"),
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }


def afmoe(config: PretrainedConfig) -> Metadata:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.num_shared_experts,
        "expert_weights_scale": config.route_scale,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.num_dense_layers,
        "attention.sliding_window": config.sliding_window,
    }


EXPERTS: dict[str, Sample] = {
    "exaone-moe": Sample("exaone_moe", "exaone-moe", {"rope_parameters": PLAIN}, exaone_moe, as_it_is, few_bits),
    "afmoe": Sample(
        "afmoe",
        "afmoe",
        {"rope_parameters": PLAIN, "num_hidden_layers": 4, "mup_enabled": True, "route_scale": 2.5}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        afmoe,
        as_it_is,
        few_bits,
    ),
    "gpt-oss": Sample(
        "gpt_oss",
        "gpt-oss",
        {"rope_parameters": {**YARN, "truncate": False}, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"num_hidden_layers": 4},
        lambda c: {"attention.sliding_window": c.sliding_window, "expert_feed_forward_length": c.intermediate_size},
        gpt_oss,
        lambda name: "MXFP4" if "_proj" in name and ".experts." in name else "Q8_0",
    ),
    "glm4moe": Sample(
        "glm4_moe",
        "glm4moe",
        {**HALF, "use_qk_norm": True, "attention_bias": True},
        lambda c: {**experts(c), "rope.dimension_count": rotary_part(c)},
        as_it_is,
        few_bits,
    ),
    "minimax-m2": Sample(
        "minimax_m2",
        "minimax-m2",
        HALF,
        lambda c: {"expert_feed_forward_length": c.intermediate_size, "rope.dimension_count": rotary_part(c)},
        as_it_is,
        lambda name: "MXFP4" if ".experts." in name else "Q8_0",
    ),
    "qwen2moe": Sample(
        "qwen2_moe",
        "qwen2moe",
        {"rope_parameters": PLAIN, "norm_topk_prob": False},
        lambda c: {
            "expert_feed_forward_length": c.moe_intermediate_size,
            "expert_shared_feed_forward_length": c.shared_expert_intermediate_size,
        },
        lambda c, name, tensor: iter([(name, tensor.squeeze() if "shared_expert_gate" in name else tensor)]),
        few_bits,
    ),
    "llama4": Sample(
        "llama4_text",
        "llama4",
        {"rope_parameters": PLAIN, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4, "floor_scale": 8192}
        | {"interleave_moe_layer_step": 2, "moe_layers": [1, 3], "intermediate_size_mlp": 96, "attn_scale": 0.1}
        | {"layer_types": ["chunked_attention"] * 3 + ["full_attention"], "attention_chunk_size": 8192}
        | {"num_experts_per_tok": 1},
        lambda c: {
            "interleave_moe_layer_step": 2,
            "feed_forward_length": c.intermediate_size_mlp,
            "expert_feed_forward_length": c.intermediate_size,
        },
        llama4,
        few_bits,
    ),
    "granitemoe": Sample(
        "granitemoe", "granitemoe", {"rope_parameters": PLAIN, **MULTIPLIERS}, multipliers, granite_moe, few_bits
    ),
    "granitemoe with shared experts": Sample(
        "granitemoeshared",
        "granitemoe",
        {"rope_parameters": PLAIN, "shared_intermediate_size": 32, **MULTIPLIERS},
        lambda c: {**multipliers(c), "expert_shared_feed_forward_length": c.shared_intermediate_size},
        granite_moe_shared,
        few_bits,
    ),
    "ernie4_5-moe": Sample(
        "ernie4_5_moe",
        "ernie4_5-moe",
        {"rope_parameters": PLAIN},
        lambda c: {
            "expert_count": c.moe_num_experts,
            "expert_used_count": c.moe_k,
            "expert_feed_forward_length": c.moe_intermediate_size,
            "expert_shared_count": c.moe_num_shared_experts,
            "leading_dense_block_count": c.moe_layer_start_index,
            "interleave_moe_layer_step": c.moe_layer_interval,
        },
        lambda c, name, tensor: iter([(name, tensor.squeeze(0) if "correction_bias" in name else tensor)]),
        few_bits,
    ),
    "hunyuan-moe": Sample(
        "hunyuan_v1_moe",
        "hunyuan-moe",
        {"rope_parameters": PLAIN, "moe_topk": 2},
        lambda c: {"expert_used_count": c.moe_topk, "expert_feed_forward_length": c.intermediate_size},
        as_it_is,
        few_bits,
    ),
    "dots1": Sample(
        "dots1",
        "dots1",
        {"rope_parameters": PLAIN, "sliding_window": None, "layer_types": ["full_attention"] * 3},
        experts,
        as_it_is,
        few_bits,
    ),
    "olmoe": Sample("olmoe", "olmoe", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "qwen3vlmoe": Sample(
        "qwen3_moe",
        "qwen3vlmoe",
        {"rope_parameters": PLAIN, "norm_topk_prob": True},
        lambda c: {**sections(c), "expert_feed_forward_length": c.moe_intermediate_size},
        as_it_is,
        few_bits,
    ),
}
