"""Writes a tiny model as a GGUF file, as llama.cpp's converter does, beside the same model with its weights decoded.

What the converter does to tensors is written out by names and reshapes of torch, and shares nothing with the code under
test. The way back needs no second description: the same function on numbered elements says where each went.
"""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from tests.samples.gguf_samples import KINDS, PACKED, STACK, Type, gguf, random_blocks, with_experts_stacked
from tests.samples.mtp_models import head_tensors
from tests.samples.tiny_models import make_checkpoint

Tensors = dict[str, Tensor]
Converter = Callable[[PretrainedConfig, str, Tensor], Iterator[tuple[str, Tensor]]]
Metadata = dict[str, Any]
LAYER_NORM = ("layer_norm_eps", "norm_epsilon", "norm_eps")
KERNELS = ("ssm_conv1d", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "shortconv.conv")
MOST_F32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", *KERNELS)


@dataclass(frozen=True)
class Sample:
    """model_type, architecture: transformers' and GGUF's name. changes: of the tiny config. metadata: beside those that
    all have. convert: yields names of the package's table, or GGUF's own, and tensors as they are stored.
    plus_one: which norms have 1 added. factor: what weights are multiplied with, for all values or for each row.
    """

    model_type: str
    architecture: str
    changes: dict[str, Any]
    metadata: Callable[[PretrainedConfig], Metadata]
    convert: Converter
    kind_of: Callable[[str], str] = lambda name: "F32"
    plus_one: Callable[[str], bool] = lambda name: False
    factor: Callable[[PretrainedConfig, str], float | Tensor] = lambda config, name: 1.0
    of_tensors: Callable[[Tensors], Metadata] = lambda tensors: {}  # weights that become metadata, by whole keys
    more: Callable[[PretrainedConfig], dict[str, np.ndarray]] = lambda config: {}  # tensors that the model has not


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
    if found := re.search(r"[.]([0-9]+)[.](eh_proj|enorm|hnorm|shared_head[.](?:norm|head))[.]weight", name):
        return f"blk.{found[1]}.nextn.{found[2].replace('.', '_')}.weight"  # the package knows few families' heads
    base, _, leaf = name.rpartition(".")
    if base.endswith("e_score_correction_bias") or leaf in ("e_score_correction_bias", "expert_bias"):
        return f"blk.{re.search(r'[.]([0-9]+)[.]', name)[1]}.exp_probs_b.bias"
    if leaf in ("A_log", "D", "layer_scalar"):
        return names.get_name(name) + (".weight" if leaf == "layer_scalar" else "")
    if leaf == "sinks":
        return f"{names.get_name(name)}.weight"
    found = names.get_name(base)
    assert found, f"{name}: the package has no name for it"
    return f"{found}.{leaf}"


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
        "attention.layer_norm_epsilon": next(
            (value for name in LAYER_NORM if (value := getattr(config, name, None)) is not None), None
        ),
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


def write(sample: Sample, directory: Path, with_head: bool = False) -> Path:
    """The GGUF file; beside it, under "decoded", the same model with its weights as they are decoded, in float32.

    with_head: both hold a head for multi-token prediction after their layers.
    """
    source = make_checkpoint(sample.model_type, 2, False, deepcopy(sample.changes))
    config, tensors = AutoConfig.from_pretrained(source), load_file(source / "model.safetensors")
    head = {"block_count": config.num_hidden_layers + 1, "nextn_predict_layers": 1} if with_head else {}
    if with_head:
        tensors |= head_tensors(tensors, beside=False, noise=0.05)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == sample.architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers + 1)
    writer = gguf.GGUFWriter(directory / "model.gguf", sample.architecture)
    for key, value in {**general(config), **sample.metadata(config), **head}.items():
        if value is not None:
            _add(writer, f"{sample.architecture}.{key}", value)
    for key, value in sample.of_tensors(tensors).items():
        _add(writer, key, value)
    for name in ("bos", "eos"):
        if type(token := getattr(config, f"{name}_token_id")) is int:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    decoded: Tensors = {}
    for name, tensor in with_experts_stacked(tensors).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = torch.full((tensor.numel(),), torch.nan)
        ids = torch.arange(tensor.numel()).view(tensor.shape)
        factor = sample.factor(config, name)
        parts = list(sample.convert(config, name, stored(name, tensor.float() * factor, sample)))
        for (its_name, part), (_, places) in zip(parts, sample.convert(config, name, ids)):
            found = _add_tensor(writer, gguf_name(names, its_name), part, sample.kind_of(name))
            values[places.flatten()] = found.flatten()
        if not parts:
            values = tensor.float().flatten()
        change = undo(name, sample)
        _split(decoded, name, (change(values) if change else values).view(tensor.shape) / factor)
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
    """What was stacked by `with_experts_stacked` one by one again."""
    if not re.search(STACK, name) or not name.endswith(".weight"):
        decoded[name] = values.contiguous()
        return
    for index, item in enumerate(values):
        decoded[re.sub(STACK, rf".\1.{index}.", name)] = item.clone()
