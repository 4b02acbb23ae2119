"""Writes golden_packed.safetensors: small weights packed and decoded by the formats' own libraries.

Needs those, which the tests do not: pip install compressed-tensors bitsandbytes; then run this file.
"""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).parent / "golden_packed.safetensors"
SHAPE = (16, 32)
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
    scale, zero = calculate_qparams(grouped.amin((1, 3)), grouped.amax((1, 3)), weights)
    state = {"weight": weight, "weight_scale": scale}
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


def main() -> None:
    torch.manual_seed(0)
    weight = torch.randn(SHAPE).to(torch.bfloat16)
    golden = {name: compressed(weight, *case) for name, case in COMPRESSED.items()}
    golden["nf4"] = four_bits(torch.randn(16, 64).to(torch.bfloat16), nested=False)
    golden["nf4 with packed scales"] = four_bits(torch.randn(16, 64).half(), nested=True)
    golden["bitsandbytes int8"] = eight_bits(weight)
    tensors, configs = {}, {}
    for name, (stored, decoded, config) in golden.items():
        tensors |= {f"{name}/{leaf}": tensor.contiguous().clone() for leaf, tensor in stored.items()}
        tensors[f"{name}/decoded"], configs[name] = decoded.contiguous().clone(), config
    save_file(tensors, FILE, metadata={"configs": json.dumps(configs)})


if __name__ == "__main__":
    main()
