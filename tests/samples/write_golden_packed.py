"""Writes golden_packed.safetensors: small weights packed and decoded by the formats' own libraries.

Needs those, which the tests do not: pip install compressed-tensors bitsandbytes nvidia-modelopt; then

    python tests/samples/write_golden_packed.py qlinear_cuda.py

with that file of auto_gptq 0.7.1, which no longer installs beside today's transformers, but packs by itself.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from modelopt.torch.quantization.qtensor.fp8_tensor import FP8QTensor
from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).with_name("golden_packed.safetensors")
SHAPE = (32, 32)
Golden = tuple[dict[str, Tensor], Tensor, dict[str, Any]]  # stored, decoded, quantization_config

# Format, and the arguments of compressed-tensors for its weights.
COMPRESSED = {
    "int4 groups": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16}),
    "int4 groups with zero points": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
    ),
    "int8 rows in words": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int8 rows with zero points": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "int8 tensor": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "FP8 rows": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "FP8 blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [8, 16]},
    ),
    "NVFP4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": "float8_e4m3fn"},
    ),
    "MXFP4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32, "scale_dtype": "uint8"}),
    "MXFP8": ("mxfp8-quantized", {"num_bits": 8, "type": "float", "group_size": 32, "scale_dtype": "uint8"}),
}


def compressed(weight: Tensor, packing: str, arguments: dict[str, Any]) -> Golden:
    """Packed and unpacked by compressed-tensors."""
    weights = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=packing)
    rows, columns = weights.block_structure or (
        SHAPE[0] if weights.strategy == "tensor" else 1,
        weights.group_size or SHAPE[1],
    )
    grouped = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    overall = generate_gparam(weight.min(), weight.max()) if weights.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(grouped.amin((1, 3)), grouped.amax((1, 3)), weights, overall)
    state = {"weight": weight, "weight_scale": scale}
    if overall is not None:
        state["weight_global_scale"] = overall
    if weights.strategy == "tensor":
        state["weight_scale"], zero = scale.flatten(), zero.flatten()
    if not weights.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(packing)
    stored = compressor.compress(state, scheme)
    decoded = compressor.decompress(stored, scheme)["weight"]
    config = {"quant_method": "compressed-tensors", "format": packing}
    config["config_groups"] = {"group_0": scheme.model_dump(mode="json")}
    return stored, decoded, config


def awq(outputs: int, inputs: int, group: int) -> Golden:
    """Random words, unpacked by compressed-tensors' converter of AutoAWQ's checkpoints."""
    words = {"qweight": (inputs, outputs // 8), "qzeros": (inputs // group, outputs // 8)}
    stored = {leaf: torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32) for leaf, shape in words.items()}
    stored["scales"] = torch.rand(inputs // group, outputs).half()
    converter = AutoAWQConverter(group_size=group, ignore=[], targets=["re:.*"])
    converted = converter.process({f"m.{leaf}": tensor for leaf, tensor in stored.items()})
    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=group, symmetric=False)
    state = {name.removeprefix("m."): tensor for name, tensor in converted.items()}
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    decoded = compressor.decompress(state, QuantizationScheme(targets=["Linear"], weights=arguments))["weight"]
    return stored, decoded, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}


def gptq(library: Any, bits: int, group: int, in_order: bool) -> Golden:
    """Packed by auto_gptq, and unpacked by multiplying with the identity."""
    outputs, inputs = SHAPE
    order = torch.arange(inputs) if in_order else torch.randperm(inputs)
    groups = (torch.argsort(order) // group).to(torch.int32)
    scale, zero = torch.rand(outputs, inputs // group) + 0.1, torch.randint(1, 1 << bits, (outputs, inputs // group))
    scale = scale.half()
    numbers = torch.randint(0, 1 << bits, SHAPE)
    linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float16)
    linear.weight.data = (numbers - zero[:, groups]) * scale[:, groups]
    packed = library.QuantLinear(bits, group, inputs, outputs, bias=False)
    packed.pack(linear, scale, zero.half(), groups)
    decoded = packed(torch.eye(inputs, dtype=torch.float16)).T
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": not in_order, "sym": False}
    return {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales", "g_idx")}, decoded, config


def four_bits(weight: Tensor, nested: bool) -> Golden:
    """Packed and unpacked by bitsandbytes."""
    stored, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
    decoded = bnb.dequantize_4bit(stored, state)
    tensors = {"weight": stored, **{f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}
    return tensors, decoded, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def eight_bits(weight: Tensor) -> Golden:
    stored, scale, _ = bnb.int8_vectorwise_quant(weight.half())
    decoded = bnb.int8_vectorwise_dequant(stored, scale)
    return {"weight": stored, "SCB": scale}, decoded, {"quant_method": "bitsandbytes", "load_in_8bit": True}


def modelopt(weight: Tensor, kind: str) -> Golden:
    """Packed and unpacked by NVIDIA ModelOpt, in float32."""
    config = {"quant_method": "modelopt", "quant_algo": kind}
    if kind == "NVFP4":
        packed, scale, overall = NVFP4QTensor.quantize(weight, 16)
        decoded = packed.dequantize(torch.float32, scale=scale, double_scale=overall, block_sizes={-1: 16})
        stored = {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": overall.squeeze()}
    elif kind == "MXFP8":
        packed, scale = MXFP8QTensor.quantize(weight)
        decoded = packed.dequantize(torch.float32, scale=scale)
        stored = {"weight": packed._quantized_data, "weight_scale": scale}
    else:
        packed, scale = FP8QTensor.quantize(weight, weight.abs().max() / 448)
        decoded = packed.dequantize(torch.float32, scale=scale)
        stored = {"weight": packed._quantized_data, "weight_scale": scale}
    return stored, decoded, config


def main() -> None:
    found = importlib.util.spec_from_file_location("qlinear_cuda", sys.argv[1])
    assert found is not None and found.loader is not None
    library = importlib.util.module_from_spec(found)
    found.loader.exec_module(library)
    torch.manual_seed(0)
    weight = torch.randn(SHAPE).to(torch.bfloat16)
    golden = {name: compressed(weight, *case) for name, case in COMPRESSED.items()}
    golden |= {f"ModelOpt {kind}": modelopt(weight.float(), kind) for kind in ("NVFP4", "MXFP8", "FP8")}
    golden["nf4"] = four_bits(torch.randn(16, 64).to(torch.bfloat16), nested=False)
    golden["nf4 with packed scales"] = four_bits(torch.randn(16, 64).half(), nested=True)
    golden["bitsandbytes int8"] = eight_bits(weight)
    golden["awq"] = awq(32, 48, 16)
    golden["gptq"] = gptq(library, 4, 16, in_order=True)
    golden["gptq 8 bit in another order"] = gptq(library, 8, 8, in_order=False)
    golden["gptq in another order"] = gptq(library, 4, 8, in_order=False)
    tensors, configs = {}, {}
    for name, (stored, decoded, config) in golden.items():
        tensors |= {f"{name}/{leaf}": tensor.contiguous().clone() for leaf, tensor in stored.items()}
        tensors[f"{name}/decoded"], configs[name] = decoded.contiguous().clone(), config
    save_file(tensors, FILE, metadata={"configs": json.dumps(configs)})


if __name__ == "__main__":
    main()
