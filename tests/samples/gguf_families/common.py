"""What several families' converters have in common: metadata, the order of rows, kinds of tensors."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.writing import Metadata

PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
HALF = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}


def nothing(config: PretrainedConfig) -> Metadata:
    return {}


def as_it_is(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, tensor


def in_pairs(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Rows of queries and keys in the order in which they are rotated together."""
    if ".q_proj." not in name and ".k_proj." not in name:
        yield name, tensor
        return
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    yield name, tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def gate_and_up(name: str, halves: Sequence[Tensor], suffix: str) -> Iterator[tuple[str, Tensor]]:
    """The halves of an input projection, apart. suffix: of GGUF's names."""
    layer = name.split(".")[2]
    for role, half in zip(("gate", "up"), halves, strict=True):
        yield f"blk.{layer}.ffn_{role}{suffix}.weight", half


def experts(config: PretrainedConfig) -> Metadata:
    """What converters of DeepSeek's and GLM's kind write."""
    return {
        "expert_count": config.n_routed_experts,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "expert_gating_func": 1 if config.model_type == "deepseek_v2" else 2,
    }


def rotary_part(config: PretrainedConfig) -> int:
    return math.floor(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def offset_norms(name: str) -> bool:
    return name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def few_bits(name: str) -> str:
    """Several kinds in one weight: gate and up projections differ."""
    return "Q4_0" if "down" in name or "o_proj" in name or "out_proj" in name else "Q8_0"
