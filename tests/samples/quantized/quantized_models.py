"""Tiny models packed by `loaders.quantize.write`, and the same models with the packed weights decoded."""

import atexit
import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loaders.checkpoint.read_spec import read_config
from loaders.dequantize.plain import decode
from loaders.formats import read_format
from loaders.formats.weights import PackedWeight, told_apart
from loaders.quantize.recipe import BITS, Quantization
from loaders.quantize.report import QuantizationReport
from loaders.quantize.write import write_quantized
from loaders.safetensors_files.headers import read_checkpoint
from loaders.safetensors_files.shards import SHARD_BYTES
from tests.samples.tiny_models import checkpoint


def model(architecture: str, **changes: object) -> Path:
    """A model some of whose matrices have groups of 128 inputs, and others smaller ones."""
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 64, **changes}
    return checkpoint(architecture, **sizes)


def quantization_of(source: Path, name: str = "int4") -> Quantization:
    return Quantization.of(read_checkpoint(source), read_config(source), BITS[name])


def pack(source: Path, target: Path, name: str = "int4", shard_bytes: int = SHARD_BYTES) -> QuantizationReport:
    return write_quantized(quantization_of(source, name), target, "of a test", shard_bytes=shard_bytes)


@cache
def packed_model(architecture: str, name: str, **changes: object) -> Path:
    """A packed model, made once per process; what it was made from is `model(architecture, **changes)`."""
    directory = Path(tempfile.mkdtemp(prefix="quantized-models-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    pack(model(architecture, **changes), directory / "packed", name)
    return directory / "packed"


def packed_weights(directory: Path) -> dict[str, PackedWeight]:
    packing = read_format(read_config(directory), directory / "config.json")
    return dict(told_apart(packing, read_checkpoint(directory)).packed)


def stored_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def decoded_weight(weight: PackedWeight, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    operands = {role: tensors[stored.name] for role, stored in weight.operands.items()}
    out = torch.empty(weight.shape, dtype=operands["weight_scale"].dtype)
    decode(weight.scheme, operands, out)
    return out


def decoded_copy(packed: Path, target: Path) -> Path:
    """The model in `packed` as `transformers` loads it without any other library."""
    weights, tensors = packed_weights(packed), stored_tensors(packed)
    shutil.copytree(packed, target, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    plain = {name: tensor for name, tensor in tensors.items() if ".weight_" not in name}
    decoded = {name: decoded_weight(weight, tensors) for name, weight in weights.items()}
    save_file(plain | decoded, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    return target


def relative_errors(source: Path, packed: Path) -> dict[str, float]:
    """‖decoded - stored‖ / ‖stored‖ of each packed weight, in float64."""
    before, after = stored_tensors(source), stored_tensors(packed)
    return {
        name: math.sqrt(
            (decoded_weight(weight, after).double() - before[name].double()).square().sum()
            / before[name].double().square().sum()
        )
        for name, weight in packed_weights(packed).items()
    }
