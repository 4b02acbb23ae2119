"""Multi-head latent attention: DeepSeek V2 and V3, and what is built like them (Kimi K2, Moonlight, GLM 4.7 Flash).

Kimi Linear has it between layers of the delta rule with a decay for every channel.
"""

from __future__ import annotations

import math

from loaders.gguf.families.architecture import Config, Divide, GgufArchitecture
from loaders.gguf.families.expert_stacks import joined_experts
from loaders.gguf.families.experts import SIGMOID, routed_by_sigmoid
from loaders.gguf.families.names import CORRECTION_BIAS, MLP, MLP_NORM, ROUTER, SHARED_EXPERTS
from loaders.gguf.header import GgufFile, GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.placement import RowOrder, Whole
from loaders.gguf.rotations import linear_or_yarn

LOG_MULTIPLIER = 0.1  # of YaRN, by which the metadata's value is multiplied
# Groups of experts, and how many of them a token is routed to, where files do not state them: of DeepSeek V2 and V3, by
# the number of experts.
GROUPS = {160: (8, 3), 256: (8, 4)}


def is_sigmoid(gguf: GgufFile) -> bool:
    """Whether a file of this architecture is built as DeepSeek V3, rather than V2."""
    if gguf.metadata.get("deepseek2.expert_gating_func") == SIGMOID:
        return True
    return any(name.endswith("exp_probs_b.bias") for name in gguf.tensors)


def _latent(metadata: Metadata) -> Config:
    """Files of older converters state the widths of keys and values as they are; later ones, as they are cached."""
    rotated, rank = metadata.integer("rope.dimension_count"), metadata.integer("attention.kv_lora_rank")
    keys, values = _widths(metadata)
    groups, used = GROUPS.get(metadata.integer("expert_count"), (1, 1))
    query_rank = metadata.optional("attention.q_lora_rank")
    return {
        **routed_by_sigmoid(metadata),
        "n_group": metadata.integer("expert_group_count", groups),
        "topk_group": metadata.integer("expert_group_used_count", used),
        "rope_parameters": _rotations(metadata),
        "num_key_value_heads": metadata.integer("attention.head_count"),
        "head_dim": rotated,
        "q_lora_rank": metadata.integer("attention.q_lora_rank") if query_rank is not None else None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys - rotated,
        "v_head_dim": values,
    }


def _v2(metadata: Metadata) -> Config:
    config = _latent(metadata)
    return {**config, "topk_method": "group_limited_greedy" if config["n_group"] > 1 else "greedy"}


def _v3(metadata: Metadata) -> Config:
    normed = metadata.flag("expert_weights_norm", True)
    return {**_latent(metadata), "norm_topk_prob": normed, "rope_interleave": True}


def _kimi_linear(metadata: Metadata) -> Config:
    """Layers without heads of keys and values carry a state. Nothing is rotated."""
    config = {**_latent(metadata), "norm_topk_prob": metadata.flag("expert_weights_norm", True)}
    dense = config.pop("first_k_dense_replace")
    del config["rope_parameters"]
    heads = metadata.kv_heads[: metadata.layers]
    return {
        **config,
        "num_local_experts": config.pop("n_routed_experts"),
        "mlp_layer_types": ["dense" if layer < dense else "sparse" for layer in range(metadata.layers)],
        "layer_types": ["full_attention" if count else "linear_attention" for count in heads],
        "linear_head_dim": metadata.integer("kda.head_dim"),
        "linear_num_heads": metadata.integer("attention.head_count"),
        "linear_conv_kernel_dim": metadata.integer("ssm.conv_kernel"),
    }


def _widths(metadata: Metadata) -> tuple[int, int]:
    """The widths of a head's keys and values."""
    found = []
    for name in ("key_length", "value_length"):
        later = f"attention.{name}_mla"
        found.append(metadata.integer(later if metadata.optional(later) is not None else f"attention.{name}"))
    return found[0], found[1]


def _rotations(metadata: Metadata) -> Config:
    parameters = linear_or_yarn(metadata, 10_000.0)
    if parameters["rope_type"] == "yarn":
        multiplier = metadata.real("rope.scaling.yarn_log_multiplier", 0.0, 0.0, 1.0) / LOG_MULTIPLIER
        if multiplier:  # they state one of the two, which are equal in published models
            parameters |= {"mscale": round(multiplier, 6), "mscale_all_dim": round(multiplier, 6)}
    return parameters


def _both(metadata: Metadata, layer: str) -> Whole:
    keys, values = _widths(metadata)
    heads, rank = metadata.integer("attention.head_count"), metadata.integer("attention.kv_lora_rank")
    rows = heads * (keys - metadata.integer("rope.dimension_count") + values)
    return Whole(f"{layer}self_attn.kv_b_proj.weight", (rows, rank))


def _keys(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """[heads, rank, width]: the keys' half of each head, stored transposed."""
    width = _widths(metadata)[0] - metadata.integer("rope.dimension_count")
    place = RowOrder(heads=metadata.integer("attention.head_count"), end=width, turned=True)
    return [tensor.part_of(_both(metadata, layer), "k", place)]


def _values(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    width = _widths(metadata)[0] - metadata.integer("rope.dimension_count")
    place = RowOrder(heads=metadata.integer("attention.head_count"), begin=width)
    return [tensor.part_of(_both(metadata, layer), "v", place)]


def _kernel(place: int) -> Divide:
    """[1, channels, 1, length]: of queries, keys or values, which the model convolves in one."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        channels = metadata.integer("attention.head_count") * metadata.integer("kda.head_dim")
        length = metadata.integer("ssm.conv_kernel")
        whole = Whole(f"{layer}self_attn.conv1d.weight", (3 * channels, 1, length))
        rows = RowOrder(begin=place * channels, end=(place + 1) * channels)
        return [tensor.named(tensor.name, shape=(channels, length)).part_of(whole, "qkv"[place], rows)]

    return divide


def _decay(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """Stored as -exp of the model's values."""
    shape = (1, 1, math.prod(tensor.values), 1)
    return [tensor.named(f"{layer}self_attn.forget_gate.A_log", negated_log=True, shape=shape)]


LATENT = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    **{**MLP_NORM, **MLP, **ROUTER, **SHARED_EXPERTS},
}
_DIVIDED = {**joined_experts(), "attn_k_b.weight": _keys, "attn_v_b.weight": _values}

V2 = GgufArchitecture("deepseek_v2", "DeepseekV2ForCausalLM", LATENT, _v2, divided=_DIVIDED, plain_attention=False)
V3 = GgufArchitecture(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    {**LATENT, **CORRECTION_BIAS},
    _v3,
    divided=_DIVIDED,
    plain_attention=False,
)
KIMI_LINEAR = GgufArchitecture(
    "kimi_linear",
    "KimiLinearForCausalLM",
    {
        **{**LATENT, **CORRECTION_BIAS},
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "ssm_f_a": "self_attn.forget_gate.f_a_proj",
        "ssm_f_b": "self_attn.forget_gate.f_b_proj",
        "ssm_dt.bias": "self_attn.forget_gate.dt_bias",
        "ssm_beta": "self_attn.b_proj",
        "ssm_g_a": "self_attn.g_a_proj",
        "ssm_g_b": "self_attn.g_b_proj",
        "ssm_norm": "self_attn.o_norm",
    },
    _kimi_linear,
    divided={
        **_DIVIDED,
        **{f"ssm_conv1d_{role}.weight": _kernel(place) for place, role in enumerate("qkv")},
        "ssm_a": _decay,
    },
    plain_attention=False,
)
