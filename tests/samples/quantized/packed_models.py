"""Tiny models in every packed format, each beside the same model with its weights decoded."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loaders.checkpoint.indexed import can_index
from tests.samples.quantized.packed_samples import (
    Packed,
    awq,
    bitsandbytes_int8,
    fp8,
    fp8_or_fp4,
    gptq,
    int8,
    mx,
    mxfp4,
    nf4,
    nvfp4,
    nvfp4_experts,
    rewrite,
    words,
)
from tests.samples.tiny_models import checkpoint

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INTEGERS = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
FLOATS = {"type": "float", "num_bits": 8, "symmetric": True}
NVFP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "symmetric": True}
MX = {"type": "float", "strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": "torch.uint8"}


def gptq_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, **values}


def fp8_config(rows: int, columns: int) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [rows, columns]}


def compressed_config(packing: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group}}


def modelopt_config(algorithm: str, **values: Any) -> dict[str, Any]:
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "ignore": ["lm_head", "model.layers.*.mlp.gate*"],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        **values,
    }


def fp8_rows(weight: Tensor) -> Packed:
    return fp8(weight, (1, weight.shape[1]), torch.bfloat16)


def fp8_tensor(weight: Tensor) -> Packed:
    return fp8(weight, tuple(weight.shape), torch.float32)


def nvfp4_or_fp8(weight: Tensor, modelopt: bool = False) -> Packed:
    """NVFP4 for matrices that give more than they take, FP8 for the others, as mixed checkpoints have both."""
    if weight.shape[0] > weight.shape[1]:
        return nvfp4(weight, modelopt)
    return fp8_tensor(weight) if modelopt else fp8_rows(weight)


NVFP4_AND_FP8 = compressed_config("mixed-precision", **NVFP4)
NVFP4_AND_FP8["config_groups"]["group_1"] = {
    "targets": ["re:.*down_proj$"],
    "weights": {**FLOATS, "strategy": "channel"},
    "format": "float-quantized",
}
MIXED_LAYERS = {
    "model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
    "model.layers.0.mlp.down_proj": {"quant_algo": "FP8"},
}

# What a model is packed by: its architecture, the writer of one weight, and the config that says so.
CASES: dict[str, tuple[str, Callable[[Tensor], Packed], dict[str, Any]]] = {
    "awq": ("llama", awq, AWQ),
    "gptq": ("llama", gptq, gptq_config()),
    "gptq in order of activations": (
        "llama",
        partial(gptq, group=16, order="activations"),
        gptq_config(group_size=16, desc_act=True),
    ),
    "gptq 8 bit, rows": ("llama", partial(gptq, bits=8, group=None), gptq_config(bits=8, group_size=-1)),
    "gptq, second version": ("llama", partial(gptq, less_one=False), gptq_config(checkpoint_format="gptq_v2")),
    "int4 groups": ("llama", words, compressed_config("pack-quantized", **INTEGERS)),
    "int4 groups, zero points, order": (
        "llama",
        partial(words, group=16, symmetric=False, mixed=True),
        compressed_config("pack-quantized", **{**INTEGERS, "group_size": 16, "symmetric": False, "actorder": "group"}),
    ),
    "int8 rows in words": (
        "llama",
        partial(words, bits=8, group=None, dtype=torch.float16),
        compressed_config("pack-quantized", type="int", num_bits=8, strategy="channel"),
    ),
    "int8 rows": ("llama", int8, compressed_config("int-quantized", type="int", num_bits=8, strategy="channel")),
    "int8 groups, zero points": (
        "llama",
        partial(int8, group=16, symmetric=False),
        compressed_config("int-quantized", type="int", num_bits=8, strategy="group", group_size=16, symmetric=False),
    ),
    "FP8 tensor": ("llama", fp8_tensor, compressed_config("float-quantized", strategy="tensor", **FLOATS)),
    "FP8 rows": ("llama", fp8_rows, compressed_config("naive-quantized", strategy="channel", **FLOATS)),
    "FP8 blocks": (
        "llama",
        partial(fp8, block=(24, 24), dtype=torch.bfloat16),
        compressed_config("float-quantized", strategy="block", block_structure=[24, 24], **FLOATS),
    ),
    "DeepSeek FP8": (
        "llama",
        partial(fp8, block=(24, 24), dtype=torch.float32, name="weight_scale_inv"),
        fp8_config(24, 24),
    ),
    "NVFP4": ("llama", nvfp4, compressed_config("nvfp4-pack-quantized", **NVFP4)),
    "MXFP4 of matrices": ("llama", partial(mx, bits=4), compressed_config("mxfp4-pack-quantized", **MX, num_bits=4)),
    "MXFP8": ("llama", partial(mx, bits=8), compressed_config("mxfp8-quantized", **MX, num_bits=8)),
    "ModelOpt NVFP4": (
        "llama",
        partial(nvfp4, modelopt=True),
        modelopt_config("NVFP4", config_groups={"group_0": {"weights": NVFP4}}),
    ),
    "NVFP4 and FP8": ("llama", nvfp4_or_fp8, NVFP4_AND_FP8),
    "ModelOpt NVFP4 and FP8": (
        "llama",
        partial(nvfp4_or_fp8, modelopt=True),
        modelopt_config("MIXED_PRECISION", quantized_layers=MIXED_LAYERS),
    ),
    "ModelOpt MXFP8": ("llama", partial(mx, bits=8, modelopt=True), modelopt_config("MXFP8")),
    "bitsandbytes int8": ("llama", bitsandbytes_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": ("llama", nf4, BNB4),
    "nf4, scales packed": ("llama", partial(nf4, nested=5), BNB4),
    "MXFP4": ("gpt_oss", mxfp4, {"quant_method": "mxfp4"}),
    "awq experts": ("qwen3_moe", partial(awq, group=8), {**AWQ, "group_size": 8}),
    "gptq experts": (
        "qwen3_moe",
        partial(gptq, group=8, order="activations"),
        gptq_config(group_size=8, desc_act=True),
    ),
    "FP8 experts": (
        "qwen3_moe",
        partial(fp8, block=(16, 16), dtype=torch.float32, name="weight_scale_inv"),
        fp8_config(16, 16),
    ),
    "NVFP4 experts": ("qwen3_moe", nvfp4, compressed_config("nvfp4-pack-quantized", **NVFP4)),
    "ModelOpt NVFP4, fused experts": ("llama4_text", nvfp4_experts, modelopt_config("NVFP4")),
    "int4 experts": (
        "mixtral",
        partial(words, symmetric=False),
        compressed_config("pack-quantized", **{**INTEGERS, "symmetric": False}),
    ),
}
if can_index():
    CASES["DeepSeek-V4"] = ("deepseek_v4", fp8_or_fp4, {**fp8_config(8, 8), "scale_fmt": "ue8m0"})
# Every matrix packed, which takes in embeddings and heads: two tensors, and one that is tied.
WHOLE = {
    "gptq, head too": ("llama", partial(gptq, order="none"), gptq_config(lm_head=True), ("lm_head.weight",)),
    "int4, embedding and head too": (
        "llama",
        words,
        compressed_config("pack-quantized", **INTEGERS),
        ("lm_head.weight", "embed_tokens.weight"),
    ),
    "int8, tied embedding too": (
        "qwen2",
        int8,
        compressed_config("int-quantized", type="int", num_bits=8, strategy="channel"),
        ("embed_tokens.weight",),
    ),
}
_LEAVES = {
    "deepseek_v4": (
        *("wq_a.weight", "wq_b.weight", "attn.wkv.weight", "wo_a.weight", "wo_b.weight"),
        *("w1.weight", "w2.weight", "w3.weight"),
    ),
    "gpt_oss": ("experts.gate_up_proj", "experts.down_proj"),
    "llama4_text": ("experts.gate_up_proj", "experts.down_proj"),
    "mixtral": ("proj.weight", "w1.weight", "w2.weight", "w3.weight"),
}


@cache
def packed_model(case: str) -> Path:
    """Directory of a packed model, made at the first call; under "decoded" is what it must equal."""
    architecture, pack, config, *others = WHOLE.get(case) or CASES[case]
    leaves = (*_LEAVES.get(architecture, ("proj.weight",)), *(other for leaves in others for other in leaves))
    source = checkpoint(architecture)
    directory = Path(tempfile.mkdtemp(dir=source.parent)) / "packed"
    return rewrite(source, directory, lambda name: name.endswith(leaves), pack, config)
