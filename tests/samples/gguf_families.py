"""Tiny models of further families as GGUF files, as llama.cpp's converter writes them, each beside its decoded weights.

What the converter does to tensors is written out here by names and reshapes of torch, and shares nothing with the code
under test. The way back needs no second description: the same function on numbered elements says where each went.
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from tests.samples.gguf_samples import KINDS, PACKED, Type, gguf, random_blocks, with_experts_stacked
from tests.samples.tiny_models import make_checkpoint

Tensors = dict[str, Tensor]
Converter = Callable[[PretrainedConfig, str, Tensor], Iterator[tuple[str, Tensor]]]
Metadata = dict[str, Any]
MOST_F32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d", "shortconv.conv")


@dataclass(frozen=True)
class Sample:
    """model_type, architecture: transformers' and GGUF's name. changes: of the tiny config. metadata: beside those that
    all have. convert: yields names of the package's table, or GGUF's own, and tensors as they are stored.
    plus_one: which norms have 1 added.
    """

    model_type: str
    architecture: str
    changes: dict[str, Any]
    metadata: Callable[[PretrainedConfig], Metadata]
    convert: Converter
    kind_of: Callable[[str], str] = lambda name: "F32"
    plus_one: Callable[[str], bool] = lambda name: False
    more: Callable[[PretrainedConfig], dict[str, np.ndarray]] = lambda config: {}  # tensors that the model has not


def as_it_is(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, tensor


def undo(name: str, sample: Sample) -> Callable[[Tensor], Tensor] | None:
    """What makes the stored values of a tensor of floats those of the model."""
    if name.endswith("A_log"):
        return lambda values: torch.log(-values)
    return (lambda values: values - 1) if sample.plus_one(name) else None


def stored(name: str, tensor: Tensor, sample: Sample) -> Tensor:
    if name.endswith("A_log"):
        return -torch.exp(tensor)
    return tensor + 1 if sample.plus_one(name) else tensor


def gguf_name(names: Any, name: str) -> str:
    """By the package's table, unless it is GGUF's already."""
    if re.match(r"blk\.|token_embd|output", name):
        return name
    base, _, leaf = name.rpartition(".")
    if base.endswith("e_score_correction_bias") or leaf in ("e_score_correction_bias", "expert_bias"):
        return f"blk.{re.search(r'[.]([0-9]+)[.]', name)[1]}.exp_probs_b.bias"
    if leaf in ("A_log", "layer_scalar"):
        return names.get_name(name) + (".weight" if leaf == "layer_scalar" else "")
    if leaf == "sinks":
        return f"{names.get_name(name)}.weight"
    return f"{names.get_name(base)}.{leaf}"


def general(config: PretrainedConfig) -> Metadata:
    """What the converter's base class writes."""
    rotary = getattr(config, "rope_parameters", None) or {}
    rotary = rotary.get("full_attention", rotary)
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "rope.freq_base": rotary.get("rope_theta"),
        "expert_count": getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "attention.key_length": config.to_dict().get("head_dim"),
        "attention.value_length": config.to_dict().get("head_dim"),
    }
    if rotary.get("rope_type") == "yarn":
        found |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rotary["factor"],
            "rope.scaling.original_context_length": rotary["original_max_position_embeddings"],
        }
    return {name: value for name, value in found.items() if value is not None}


def write(sample: Sample, directory: Path) -> Path:
    """The GGUF file; beside it, under "decoded", the same model with its weights as they are decoded, in float32."""
    source = make_checkpoint(sample.model_type, 2, False, deepcopy(sample.changes))
    config, tensors = AutoConfig.from_pretrained(source), load_file(source / "model.safetensors")
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == sample.architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers + 1)
    writer = gguf.GGUFWriter(directory / "model.gguf", sample.architecture)
    for key, value in {**general(config), **sample.metadata(config)}.items():
        if value is not None:
            _add(writer, f"{sample.architecture}.{key}", value)
    for name in ("bos", "eos"):
        if type(token := getattr(config, f"{name}_token_id")) is int:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    decoded: Tensors = {}
    for name, tensor in with_experts_stacked(tensors).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = torch.full((tensor.numel(),), torch.nan)
        ids = torch.arange(tensor.numel()).view(tensor.shape)
        parts = list(sample.convert(config, name, stored(name, tensor.float(), sample)))
        for (its_name, part), (_, places) in zip(parts, sample.convert(config, name, ids)):
            found = _add_tensor(writer, gguf_name(names, its_name), part, sample.kind_of(name))
            values[places.flatten()] = found.flatten()
        change = undo(name, sample)
        _split(decoded, name, (change(values) if change else values).view(tensor.shape))
    for name, values in sample.more(config).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = directory / "decoded"
    target.mkdir()
    save_file(decoded, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    return directory / "model.gguf"


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)


def _add_tensor(writer: Any, name: str, tensor: Tensor, kind: str) -> Tensor:
    """Returns the values as they decode."""
    values = tensor.contiguous().numpy()
    leaf = name.removesuffix(".weight").partition(".")[2].partition(".")[2]
    if tensor.dim() == 1 or leaf in MOST_F32 or not name.endswith(".weight") or name.endswith("norm.weight"):
        kind = "F32"
    elif values.shape[-1] % gguf.GGML_QUANT_SIZES[Type[kind]][0]:
        kind = "F16"  # as the converter does where rows are no whole number of blocks
    if kind in KINDS and kind not in PACKED:
        blocks = random_blocks(kind, values.shape, float(values.std()), name)
    else:
        blocks = gguf.quants.quantize(values, Type[kind])
    writer.add_tensor(name, blocks, raw_dtype=Type[kind])
    return torch.from_numpy(np.array(gguf.quants.dequantize(blocks, Type[kind]))).view(tensor.shape)


def _split(decoded: Tensors, name: str, values: Tensor) -> None:
    """Experts that were stacked by `with_experts_stacked` one by one again."""
    stacked = re.search(r"\.experts\.(\w+)\.weight$", name)
    if not stacked or values.dim() != 3:
        decoded[name] = values.contiguous()
        return
    for index, expert in enumerate(values):
        decoded[name.replace(".experts.", f".experts.{index}.")] = expert.clone()


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


# Experts of gpt-oss: rows of gate and up projections take turns, and matrices are transposed.


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


# The gated delta rule: Qwen3-Next splits in_proj_qkvz; Qwen 3.5's value heads are stored in tiles.


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


def nothing(config: PretrainedConfig) -> Metadata:
    return {}


def in_pairs(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Rows of queries and keys in the order in which they are rotated together."""
    if ".q_proj." not in name and ".k_proj." not in name:
        yield name, tensor
        return
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    yield name, tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def gate_and_up(name: str, halves: Sequence[Tensor], experts: str) -> Iterator[tuple[str, Tensor]]:
    """The halves of an input projection of experts, apart."""
    layer = name.split(".")[2]
    for role, half in zip(("gate", "up"), halves, strict=True):
        yield f"blk.{layer}.ffn_{role}_{experts}.weight", half


def granite_moe(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("input_linear.weight"):
        yield from gate_and_up(name, tensor.chunk(2, dim=1), "exps")
    else:
        yield from in_pairs(config, name, tensor)


def granite_moe_shared(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name.endswith("shared_mlp.input_linear.weight"):
        yield from gate_and_up(name, tensor.chunk(2, dim=0), "shexp")
    else:
        yield from granite_moe(config, name, tensor)


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


def gemma4_experts(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    ours = {
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    end = next((end for end in ours if name.endswith(end)), None)
    yield (f"blk.{name.split('.')[2]}.{ours[end]}" if end else name), tensor


def sections(config: PretrainedConfig) -> Metadata:
    """Of models that read images: how rotary positions are shared among time, height and width."""
    return {"rope.dimension_sections": [2, 1, 1, 0], "n_deepstack_layers": 3}


def ministral3_metadata(config: PretrainedConfig) -> Metadata:
    return {
        "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": config.rope_parameters["llama_4_scaling_beta"],
    }


MULTIPLIERS = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 2.0},
}


def multipliers(config: PretrainedConfig) -> Metadata:
    return {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def gemma4_metadata(config: PretrainedConfig) -> Metadata:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    width, layers = config.intermediate_size, range(config.num_hidden_layers)
    values = config.to_dict()
    narrow, wide = values["head_dim"], next(iter(values["per_layer_config"].values()))["head_dim"]
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "attention.key_length": wide,
        "attention.value_length": wide,
        "attention.key_length_swa": narrow,
        "attention.value_length_swa": narrow,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "feed_forward_length": [width if layer < first_shared else 2 * width for layer in layers],
        "rope.freq_base_swa": 10_000.0,
        "rope.dimension_count": wide,
    }


def rotary_part(config: PretrainedConfig) -> int:
    return math.floor(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
HALF = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
LAYERS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
MROPE = {"mrope_section": [1, 1, 0], "mrope_interleaved": True}


def offset_norms(name: str) -> bool:
    return name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def few_bits(name: str) -> str:
    """Several kinds in one weight: gate and up projections differ."""
    return "Q4_0" if "down" in name or "o_proj" in name or "out_proj" in name else "Q8_0"


SAMPLES: dict[str, Sample] = {
    "gpt-oss": Sample(
        "gpt_oss",
        "gpt-oss",
        {"rope_parameters": {**YARN, "truncate": False}, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"num_hidden_layers": 4},
        lambda c: {"attention.sliding_window": c.sliding_window, "expert_feed_forward_length": c.intermediate_size},
        gpt_oss,
        lambda name: "MXFP4" if "_proj" in name and ".experts." in name else "Q8_0",
    ),
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
    "smollm3": Sample(
        "smollm3",
        "smollm3",
        {"rope_parameters": PLAIN, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
        nothing,
        in_pairs,
        few_bits,
    ),
    "olmo2": Sample("olmo2", "olmo2", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "olmo3": Sample(
        "olmo3",
        "olmo2",
        {},
        lambda c: {
            "attention.sliding_window": c.sliding_window,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c.layer_types],
        },
        as_it_is,
    ),
    "seed_oss": Sample("seed_oss", "seed_oss", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "granite": Sample("granite", "granite", {"rope_parameters": PLAIN, **MULTIPLIERS}, multipliers, in_pairs, few_bits),
    "granitemoe": Sample(
        "granitemoe", "granitemoe", {"rope_parameters": PLAIN, **MULTIPLIERS}, multipliers, granite_moe, few_bits
    ),
    "glm4": Sample(
        "glm4",
        "glm4",
        HALF,
        lambda c: {"rope.dimension_count": rotary_part(c)},
        as_it_is,
        few_bits,
    ),
    "ernie4_5": Sample("ernie4_5", "ernie4_5", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
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
    "hunyuan-dense": Sample(
        "hunyuan_v1_dense", "hunyuan-dense", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits
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
    "gemma4": Sample(
        "gemma4_text",
        "gemma4",
        {"global_head_dim": 16, "tie_word_embeddings": True, "use_double_wide_mlp": True}
        | {"num_hidden_layers": 4, "num_kv_shared_layers": 2}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        gemma4_metadata,
        as_it_is,
        few_bits,
        more=lambda config: {"rope_freqs.weight": np.array([1.0] * 2 + [1e30] * 6, np.float32)},
    ),
    "gemma4 with experts": Sample(
        "gemma4_text",
        "gemma4",
        {"global_head_dim": 16, "tie_word_embeddings": True, "num_kv_shared_layers": 0, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0}
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
        lambda c: {
            **gemma4_metadata(c),
            "feed_forward_length": c.intermediate_size,
            "expert_used_count": c.top_k_experts,
            "expert_feed_forward_length": c.moe_intermediate_size,
        },
        gemma4_experts,
        few_bits,
        more=lambda config: {"rope_freqs.weight": np.array([1.0] * 2 + [1e30] * 6, np.float32)},
    ),
    "gemma": Sample(
        "gemma",
        "gemma",
        {"rope_parameters": PLAIN, "tie_word_embeddings": True},
        nothing,
        as_it_is,
        few_bits,
        offset_norms,
    ),
    "exaone4": Sample(
        "exaone4",
        "exaone4",
        {"rope_parameters": PLAIN, "sliding_window": 8, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        lambda c: {"attention.sliding_window": c.sliding_window},
        as_it_is,
        few_bits,
    ),
    "mistral3": Sample(
        "ministral3",
        "mistral3",
        {
            "sliding_window": None,
            "rope_parameters": {**YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}
            | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
        ministral3_metadata,
        in_pairs,
        few_bits,
    ),
    "granitemoe with shared experts": Sample(
        "granitemoeshared",
        "granitemoe",
        {"rope_parameters": PLAIN, "shared_intermediate_size": 32, **MULTIPLIERS},
        lambda c: {**multipliers(c), "expert_shared_feed_forward_length": c.shared_intermediate_size},
        granite_moe_shared,
        few_bits,
    ),
    "olmoe": Sample("olmoe", "olmoe", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "qwen2vl": Sample("qwen2", "qwen2vl", {"rope_parameters": PLAIN}, sections, as_it_is, few_bits),
    "qwen3vl": Sample("qwen3", "qwen3vl", {"rope_parameters": PLAIN}, sections, as_it_is, few_bits),
    "qwen3vlmoe": Sample(
        "qwen3_moe",
        "qwen3vlmoe",
        {"rope_parameters": PLAIN, "norm_topk_prob": True},
        lambda c: {**sections(c), "expert_feed_forward_length": c.moe_intermediate_size},
        as_it_is,
        few_bits,
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
_DIRECTORY = tempfile.TemporaryDirectory(prefix="tiny-gguf-families-")


@cache
def family_file(case: str) -> Path:
    """The GGUF file of a case; beside it is "decoded"."""
    directory = Path(_DIRECTORY.name) / case.replace(" ", "-")
    directory.mkdir()
    return write(SAMPLES[case], directory)
