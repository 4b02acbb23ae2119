"""A draft out of the target itself: the weights of its layers rounded to a few bits, written as a checkpoint."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toolkit.checkpoints import own_cache, run_directory
from torch import Tensor

from loaders.checkpoint.model_source import model_source
from loaders.gguf.model import is_gguf
from loaders.hub.names import directory_name
from offload_runtime.errors import ModelFilesError

_IN_A_LAYER = re.compile(r"\.\d+\.")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5"}


@dataclass(frozen=True)
class RoundingGrid:
    """Values that a group of neighbouring weights of one row are rounded to: `levels` of them, evenly spaced.

    symmetric: around 0, up to the largest magnitude in the group; otherwise from its least to its largest value.
    """

    levels: int
    group: int
    symmetric: bool

    def step(self, groups: Tensor) -> Tensor:
        """Distance of two levels, [..., 1] for groups [..., group]; 0 where all weights are the same."""
        spread = 2 * groups.abs().amax(-1, keepdim=True) if self.symmetric else _least_and_spread(groups)[1]
        return spread / (self.levels - 1)

    def rounded(self, weight: Tensor) -> Tensor:
        """`weight` [..., columns] with every group of its rows rounded, float32; a last group may be shorter."""
        weight = weight.float()
        whole = weight.shape[-1] // self.group * self.group
        pieces = [self._round(weight[..., :whole].unflatten(-1, (-1, self.group))).flatten(-2)] if whole else []
        if whole < weight.shape[-1]:
            pieces.append(self._round(weight[..., whole:]))
        return torch.cat(pieces, dim=-1)

    def _round(self, groups: Tensor) -> Tensor:
        step = self.step(groups)
        divisor = torch.where(step > 0, step, 1.0)
        least = step * (1 - self.levels) / 2 if self.symmetric else _least_and_spread(groups)[0]
        return least + (groups - least).div(divisor).round() * step


GRIDS = {
    2: RoundingGrid(levels=4, group=32, symmetric=False),
    3: RoundingGrid(levels=8, group=64, symmetric=True),
    4: RoundingGrid(levels=16, group=32, symmetric=False),
}


def _least_and_spread(groups: Tensor) -> tuple[Tensor, Tensor]:
    least = groups.amin(-1, keepdim=True)
    return least, groups.amax(-1, keepdim=True) - least


@contextmanager
def rounded_draft(target: Path, bits: int) -> Iterator[Path]:
    """The directory of the target with rounded layers, for the block. Raises ModelFilesError.

    For the block nothing is known of other drafts: the user's cache tells pairs apart by the shapes of their weights,
    which are the same for any number of bits.
    """
    with run_directory("rounded-") as parent, own_cache(parent / "cache"):
        directory = parent / f"{directory_name(target)}-{bits}-bit"
        try:
            write_rounded(target, directory, GRIDS[bits])
        except OSError as error:
            raise ModelFilesError(f"{directory}: cannot be written ({error.strerror})") from error
        yield directory


def write_rounded(target: Path, directory: Path, grid: RoundingGrid) -> None:
    """Copy a checkpoint, its tokenizer included, with the matrices of its layers rounded.

    Embeddings, head, norms and biases stay as they are; so does the type that the weights are stored in. Raises
    ModelFilesError for a GGUF file.
    """
    if is_gguf(target):
        raise ModelFilesError(
            f"{target}: only checkpoints in safetensors can be rounded; give --draft a model instead."
        )
    directory.mkdir(parents=True)
    for file in target.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and file.name != "acceptance.json":
            shutil.copyfile(file, directory / file.name)
    for path in model_source(target).checkpoint().files:
        with safe_open(path, framework="pt") as tensors:
            rounded = {name: _rounded(name, tensors.get_tensor(name), grid) for name in tensors.keys()}  # noqa: SIM118
        save_file(rounded, directory / Path(path).name, metadata={"format": "pt"})


def _rounded(name: str, tensor: Tensor, grid: RoundingGrid) -> Tensor:
    is_matrix = tensor.dim() >= 2 and tensor.is_floating_point() and not name.endswith("bias")
    if not is_matrix or not _IN_A_LAYER.search(name):
        return tensor
    return grid.rounded(tensor).to(tensor.dtype).contiguous()
