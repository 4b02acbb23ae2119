"""Tiny models in 16 bits whose matrices are large enough to be packed without loss."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loaders.cache_directory import cache_directory
from tests.samples.tiny_models import checkpoint

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 64}


def in_16_bits(source: Path, target: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    shutil.copytree(source, target)
    changed_files(target, lambda name, tensor: tensor.to(dtype))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    return target


def changed_files(directory: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Write every tensor of a model as `change` gives it."""
    for file in directory.glob("*.safetensors"):
        save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def heavy_tailed(target: Path, **sizes: int) -> Path:
    """Student's t with 5 degrees of freedom, in matrices that are large enough for their share to count."""
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, **sizes}
    generator = torch.Generator().manual_seed(0)

    def heavy(name: str, tensor: Tensor) -> Tensor:
        if tensor.dim() != 2:
            return tensor
        normal = torch.randn(6, *tensor.shape, generator=generator)
        return (normal[0] / normal[1:].square().mean(0).sqrt() / 50).to(torch.bfloat16)

    changed_files(in_16_bits(checkpoint("llama", **sizes), target), heavy)
    return target


def packed_directory() -> Path:
    """The only directory of packed weights in the cache."""
    directory = cache_directory()
    assert directory is not None
    [packed] = (directory / "quantized").iterdir()
    return packed
