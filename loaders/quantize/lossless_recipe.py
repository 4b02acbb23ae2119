"""Decides which matrices of a checkpoint are packed without loss. Reads headers only, no torch.

What is packed is restored bit for bit, so nothing that fits the format need stay as it is. Embeddings and heads do,
since they never cross the link, and routers, which are small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loaders.checkpoint.read_spec import LAYER_NUMBER
from loaders.errors import UnsupportedModelError
from loaders.formats.lossless import CHECKSUM, MARK, METHOD, LosslessFormat
from loaders.lossless.bins import KINDS, PADDING, Bins, can_encode, stored_shapes
from loaders.quantize.recipe import EXPERT, KEPT, TRANSPOSED_MODELS
from loaders.safetensors_files.headers import Checkpoint, StoredTensor
from loaders.safetensors_files.shards import described, lay_out

BITS = 5  # of the codes; with heavy tails they and the rest take 11.2 bits, 11.5 with 4-bit codes
EXPECTED_FURTHER = {3: 2.25, 4: 2.1, 5: 0.75}  # bits a weight by those of the codes, with heavy tails
ORDER = "codes, then rests, with checksums"  # of a layer's file: what was packed in another one is packed anew
LEAST_SAVED = 0.05  # a matrix that would save less stays as it is


@dataclass(frozen=True)
class LosslessRecipe:
    """A checkpoint whose matrices of 16 bits are packed without loss; everything else is copied.

    bits: of the codes. left_out: matrices that turned out not to be packable, by what the model does with them.
    """

    source: Checkpoint
    bits: int = BITS
    left_out: Collection[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, source: Checkpoint, config: Mapping[str, Any], bits: int = BITS) -> LosslessRecipe:
        """Raises UnsupportedModelError if the weights are quantized or in other types, or most are no such matrices."""
        if config.get("quantization_config") or config.get("compression_config"):
            raise UnsupportedModelError(
                f"{source.directory}: its weights are packed already, so they cannot be packed without loss. Run it as "
                "it is, without --link packed."
            )
        recipe = cls(source, bits)
        packed = sum(matrix.nbytes for matrix in recipe.matrices)
        layers = sum(tensor.nbytes for tensor in source.tensors.values() if LAYER_NUMBER.match(tensor.name))
        if 2 * packed < layers or not packed or config.get("model_type") in TRANSPOSED_MODELS:
            raise UnsupportedModelError(
                f"{source.directory}: most of its weights are not stored as matrices of bfloat16 or float16, one for "
                "each module, so they cannot be packed without loss. Run it as it is, without --link packed."
            )
        return recipe

    @cached_property
    def matrices(self) -> tuple[StoredTensor, ...]:
        """What is packed, unless it would save too little."""
        return tuple(tensor for tensor in self.source.tensors.values() if self._is_packed(tensor))

    @property
    def label(self) -> str:
        return LosslessFormat(self.bits).label

    @property
    def nbytes(self) -> int:
        """Expected bytes of all tensors of the result: how many it takes depends on the weights."""
        return sum(tensor.nbytes for tensor in self._results())

    def checkpoint(self, directory: Path) -> Checkpoint:
        """What `read_checkpoint` is expected to find in `directory` once it is written there."""
        shards = lay_out(self._results(), directory)
        return Checkpoint(directory, {tensor.name: tensor for shard in shards.values() for tensor in shard})

    def config(self, source: Mapping[str, Any], mark: str = "") -> dict[str, Any]:
        """config.json of the result, given that of the source. mark: of the files, see `LosslessFormat`."""
        return {**source, "quantization_config": {"quant_method": METHOD, "bits": self.bits, MARK: mark}}

    def _is_packed(self, tensor: StoredTensor) -> bool:
        is_weight = tensor.name.endswith(".weight") and tensor.dtype in KINDS and len(tensor.shape) == 2
        if not is_weight or not LAYER_NUMBER.match(tensor.name) or KEPT.search(tensor.name):
            return False
        return tensor.name not in self.left_out and can_encode(math.prod(tensor.shape), tensor.shape[1])

    def _results(self) -> Iterator[StoredTensor]:
        packed = {matrix.name for matrix in self.matrices}
        for name, tensor in self.source.tensors.items():
            if name in packed:
                yield from _expected(tensor, self.bits)
            else:
                yield tensor


def unit_of(tensor: StoredTensor) -> str:
    """The layer that a tensor belongs to: "model.layers.3."; empty outside of layers."""
    match = LAYER_NUMBER.match(tensor.name)
    return match[0] if match else ""


def stack_of(tensor: StoredTensor) -> tuple[int, ...] | str:
    """Equal for weights that may lie stacked: those of a layer's experts that have one shape."""
    return tensor.shape if EXPERT.search(tensor.name) else tensor.name


def _expected(matrix: StoredTensor, bits: int) -> Iterator[StoredTensor]:
    count, bins = math.prod(matrix.shape), Bins(KINDS[matrix.dtype], bits)
    for role, (dtype, shape) in stored_shapes(bins, *matrix.shape).items():
        yield described(f"{matrix.name}.{role}", dtype, shape)
    yield described(f"{matrix.name}.further", "U8", (int(count * EXPECTED_FURTHER[bits] / 8) + PADDING,))
    yield described(f"{matrix.name}.apart_at", "I32", (1,))
    yield described(f"{matrix.name}.apart", matrix.dtype, (1,))
    yield described(f"{matrix.name}.{CHECKSUM}", "I64", (1,))
