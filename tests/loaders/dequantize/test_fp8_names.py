"""Checkpoints in FP8, whose publishers name scales differently: each weight is what transformers makes of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from loaders.dequantize.plain import decode
from loaders.errors import UnsupportedModelError
from loaders.formats import read_format
from loaders.formats.weights import told_apart
from loaders.safetensors_files.headers import read_checkpoint
from tests.samples.quantized.packed_weights import NAME

EXPONENTS = torch.randint(120, 130, (3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("leaf", "dtype", "scale"),
    [
        ("scale", torch.float8_e4m3fn, EXPONENTS.view(torch.float8_e8m0fnu)),
        ("scale", torch.int8, EXPONENTS.repeat(16, 1).view(torch.float8_e8m0fnu)),  # two 4-bit floats a byte
        ("qscale_weight", torch.float8_e4m3fn, torch.tensor(0.3)),
        ("weight_scale", torch.float8_e4m3fn, torch.tensor([0.3])),  # one for an embedding, beside blocks
        ("weight_scale_inv", torch.float8_e4m3fn, EXPONENTS),
        ("weight_scale_inv", torch.float8_e4m3fn, torch.rand(48, 1)),
    ],
)
def test_scales_under_every_name_are_those_of_transformers(leaf, dtype, scale, tmp_path):
    codes = torch.randint(0, 127, (48, 128 if dtype is torch.float8_e4m3fn else 64), dtype=torch.uint8)
    stored = codes.view(dtype)
    tensors = {f"{NAME}.weight": stored, f"{NAME}.{leaf}": scale, "model.norm.scale": torch.ones(3)}
    save_file({**tensors, "model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    config = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    packing = read_format({"model_type": "llama", "quantization_config": config}, tmp_path)
    contents = told_apart(packing, read_checkpoint(tmp_path))
    assert contents.plain.keys() == {"model.norm.scale", "model.norm.weight"}
    (weight,) = contents.packed.values()
    out, operands = torch.empty(weight.shape), load_file(tmp_path / "model.safetensors")
    decode(weight.scheme, {role: operands[t.name] for role, t in weight.operands.items()}, out)
    assert torch.equal(out, Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32))


def test_experts_in_one_tensor_of_fp8_are_refused_by_name(tmp_path):
    stacked = torch.zeros(2, 4, 4).to(torch.float8_e4m3fn)
    save_file({f"{NAME}.weight": stacked, f"{NAME}.weight_scale_inv": torch.ones(2)}, tmp_path / "model.safetensors")
    packing = read_format({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, tmp_path)
    with pytest.raises(UnsupportedModelError, match="holds the experts of a layer in one tensor"):
        told_apart(packing, read_checkpoint(tmp_path))
