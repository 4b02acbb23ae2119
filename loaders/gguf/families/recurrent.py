"""Models most of whose layers carry a state: Qwen3-Next and Qwen 3.5, by the gated delta rule."""

from __future__ import annotations

from dataclasses import replace

from loaders.gguf.families.architecture import Config, Divide, GgufArchitecture
from loaders.gguf.families.expert_stacks import SHARED_GATE, joined_experts
from loaders.gguf.families.experts import qwen_experts
from loaders.gguf.families.names import ATTENTION, LATER_MLP_NORM, MLP, NEXTN, QK_NORMS, ROUTER, SHARED_EXPERT
from loaders.gguf.families.short_convolutions import kernel_of_each_channel
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.placement import RowOrder, Whole
from loaders.gguf.rotations import rotations

RULE = "linear_attn."


def _delta_rule(metadata: Metadata) -> Config:
    """Every n-th layer is attention, which rotates part of each head."""
    every = metadata.integer("full_attention_interval", 4)
    heads = metadata.integer("ssm.time_step_rank")
    return {
        "rope_parameters": rotations(metadata, partial=True),
        "layer_types": [
            "linear_attention" if (layer + 1) % every else "full_attention" for layer in range(metadata.layers)
        ],
        "linear_conv_kernel_dim": metadata.integer("ssm.conv_kernel"),
        "linear_key_head_dim": metadata.integer("ssm.state_size"),
        "linear_num_key_heads": metadata.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": metadata.integer("ssm.inner_size") // heads,
    }


def _qwen3_next(metadata: Metadata) -> Config:
    shared = metadata.integer("expert_shared_feed_forward_length")
    return {**_delta_rule(metadata), **qwen_experts(metadata), "shared_expert_intermediate_size": shared}


def _qwen35(metadata: Metadata) -> Config:
    """Rotary positions come in rows for time, height and width, which are equal for text."""
    config = _delta_rule(metadata)
    sections = metadata.integers("rope.dimension_sections", [11, 11, 10])
    rows = {"mrope_section": sections[:3], "mrope_interleaved": True}
    return {**config, "rope_parameters": {**config["rope_parameters"], **rows}}


def _qwen35_moe(metadata: Metadata) -> Config:
    config = {**_qwen35(metadata), **qwen_experts(metadata)}
    del config["norm_topk_prob"], config["decoder_sparse_step"], config["mlp_only_layers"]
    return {**config, "shared_expert_intermediate_size": metadata.integer("expert_shared_feed_forward_length")}


def _decay(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """Stored as -exp of the model's A_log."""
    return [tensor.named(f"{layer}{RULE}A_log", negated_log=True)]


def _sizes(metadata: Metadata) -> tuple[int, int, int, int]:
    """Key heads, value heads for each, widths of a key head and of a value head."""
    keys, values = metadata.integer("ssm.group_count"), metadata.integer("ssm.time_step_rank")
    width = metadata.integer("ssm.inner_size") // values
    return keys, max(values // keys, 1), metadata.integer("ssm.state_size"), width


def _of_each_key_head(metadata: Metadata, layer: str, columns: int) -> tuple[Whole, list[int]]:
    """Qwen3-Next's in_proj_qkvz, and where queries, keys, values, and what gates them begin in each key head's rows."""
    heads, each, key, value = _sizes(metadata)
    borders = [0, key, 2 * key, 2 * key + each * value, 2 * key + 2 * each * value]
    return Whole(f"{layer}{RULE}in_proj_qkvz.weight", (heads * borders[-1], columns)), borders


def _queries_keys_values(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    whole, borders = _of_each_key_head(metadata, layer, tensor.values[-1])
    heads, parts, row = metadata.integer("ssm.group_count"), [], 0
    for role, begin, end in zip("qkv", borders, borders[1:]):
        rows = tensor.rows(row, row + heads * (end - begin))
        parts.append(rows.part_of(whole, role, RowOrder(heads=heads, begin=begin, end=end)))
        row += heads * (end - begin)
    return parts


def _output_gate(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    whole, borders = _of_each_key_head(metadata, layer, tensor.values[-1])
    heads = metadata.integer("ssm.group_count")
    return [tensor.part_of(whole, "z", RowOrder(heads=heads, begin=borders[-2], end=borders[-1]))]


def _tiled(name: str, suffix: str, from_row: bool = False) -> Divide:
    """Value heads, which are stored by their place in their key head's group: the first ones, then the second.

    from_row: queries and keys come before them, in the order in which the model has them.
    """

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        groups, tiles, key, _ = _sizes(metadata)
        rows = tensor.values[0]
        before = 2 * groups * key if from_row else 0
        shape = (rows, 1, *tensor.values[1:]) if "conv1d" in name else tensor.values
        whole = Whole(f"{layer}{RULE}{name}{suffix}", shape)
        place = RowOrder(begin=before, tiles=tiles, groups=groups)
        tail = tensor.rows(before, rows).part_of(whole, "v", place)
        return [tensor.rows(0, before).part_of(whole, "qk", RowOrder(end=before)), tail] if before else [tail]

    return divide


def _tiled_decay(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    groups, tiles, _, _ = _sizes(metadata)
    whole = Whole(f"{layer}{RULE}A_log", tensor.values)
    return [replace(tensor, negated_log=True).part_of(whole, "v", RowOrder(tiles=tiles, groups=groups))]


def _tiled_output(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """The columns are those of the value heads."""
    groups, tiles, _, _ = _sizes(metadata)
    return [replace(tensor.named(f"{layer}{RULE}out_proj.weight"), tiles=tiles, groups=groups)]


_SHARED = {**ATTENTION, **QK_NORMS, **LATER_MLP_NORM, "ssm_norm": f"{RULE}norm"}
_EXPERTS = {**ROUTER, **SHARED_EXPERT}
QWEN3_NEXT = {
    **_SHARED,
    **_EXPERTS,
    "ssm_in": f"{RULE}in_proj_qkvz",  # as older converters left it
    "ssm_ba": f"{RULE}in_proj_ba",
    "ssm_dt.bias": f"{RULE}dt_bias",
    "ssm_out": f"{RULE}out_proj",
}
OWN_NORMS = frozenset({"ssm_norm"})
_NEXT_DIVIDED = {
    **joined_experts(),
    "ssm_a": _decay,
    "ssm_conv1d.weight": kernel_of_each_channel(f"{RULE}conv1d"),
    "attn_qkv.weight": _queries_keys_values,
    "attn_gate.weight": _output_gate,
    **SHARED_GATE,
}
_TILED = {
    "attn_qkv.weight": _tiled("in_proj_qkv", ".weight", from_row=True),
    "attn_gate.weight": _tiled("in_proj_z", ".weight"),
    "ssm_alpha.weight": _tiled("in_proj_a", ".weight"),
    "ssm_beta.weight": _tiled("in_proj_b", ".weight"),
    "ssm_conv1d.weight": _tiled("conv1d", ".weight", from_row=True),
    "ssm_dt.bias": _tiled("dt_bias", ""),
    "ssm_a": _tiled_decay,
    "ssm_out.weight": _tiled_output,
}

RECURRENT = {
    "qwen35": GgufArchitecture(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        {**_SHARED, **MLP, **NEXTN},
        _qwen35,
        divided=_TILED,
        norms_plus_one=True,
        own_norms=OWN_NORMS,
        plain_attention=False,
        predicts=True,
    )
}
RECURRENT_WITH_EXPERTS = {
    "qwen3next": GgufArchitecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        QWEN3_NEXT,
        _qwen3_next,
        divided=_NEXT_DIVIDED,
        norms_plus_one=True,
        own_norms=OWN_NORMS,
        plain_attention=False,
    ),
    "qwen35moe": GgufArchitecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        {**_SHARED, **_EXPERTS, **NEXTN},
        _qwen35_moe,
        divided={**_TILED, **joined_experts(), **SHARED_GATE},
        norms_plus_one=True,
        own_norms=OWN_NORMS,
        plain_attention=False,
        predicts=True,
    ),
}
