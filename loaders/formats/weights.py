"""Shared by all quantization formats: a weight as stored, and the checks on config values and tensors.

No module of this package imports torch, since plans and `--help` use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats.schemes import Scheme
from loaders.safetensors_files.headers import Checkpoint, StoredTensor

Tensors = Mapping[str, StoredTensor]
WORD_BITS = 32

# Tensors that the formats' libraries store for themselves, and scales for quantizing activations and caches, which are
# not quantized here.
BESIDE = re.compile(
    r"\.(weight_shape|weight_format|quant_state\.bitsandbytes__\w+|(input|output|k|v|q)_(scale|global_scale|zero_point)"
    r"|activation_scale|(gate_up|down)_proj_input_scale)$"
)
SCALE_DTYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class PackedWeight:
    """One weight: its dequantized shape, and the stored tensors it is dequantized from, by role."""

    name: str  # "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]
    scheme: Scheme
    operands: Mapping[str, StoredTensor]
    checksum: StoredTensor | None = None  # over all operands, where these may be kept apart; it is never streamed
    seed: int = 0  # what was added to it

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """All that is stored for the weight."""
        return (*self.operands.values(), *((self.checksum,) if self.checksum else ()))

    @property
    def stand_in(self) -> StoredTensor:
        """A stand-in for the weight where names and shapes are matched; its data is never read."""
        first = next(iter(self.operands.values()))
        return StoredTensor(self.name, first.file, "F32", self.shape, first.offset, 0)


class Format(Protocol):
    """How a model's weights are stored, by its `quantization_config`."""

    @property
    def label(self) -> str:
        """The display name: "AWQ 4-bit"."""

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        """Every quantized weight among `tensors`.

        Raises ModelFilesError for absent tensors and wrong shapes, UnsupportedModelError for what cannot be
        dequantized; both name the tensor.
        """


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint, divided into quantized weights and tensors that are stored as they are."""

    packed: Mapping[str, PackedWeight]
    plain: Mapping[str, StoredTensor]


def told_apart(packing: Format | None, checkpoint: Checkpoint) -> Contents:
    """Find the quantized weights of a checkpoint.

    Raises what `Format.weights` raises, and ModelFilesError if a weight is stored twice.
    """
    if packing is None:
        return Contents({}, checkpoint.tensors)
    packed = {weight.name: weight for weight in packing.weights(checkpoint.tensors)}
    of_packed = {tensor for weight in packed.values() for tensor in weight.stored}
    plain = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor not in of_packed and not BESIDE.search(name)
    }
    if twice := packed.keys() & plain.keys():
        name = min(twice)
        raise ModelFilesError(f"{plain[name].file}: {name} is stored twice, packed and as it is.")
    return Contents(packed, plain)


@dataclass(frozen=True)
class Settings:
    """The values of a `quantization_config`, checked as they are read."""

    file: Path
    values: Mapping[str, Any]
    model_type: str = ""

    def choice(self, name: str, choices: Iterable[Any], default: Any = None) -> Any:
        """The value, which must be one of `choices`; `default` if it is absent."""
        value = self.values.get(name)
        value = default if value is None else value
        if not any(type(value) is type(known) and value == known for known in choices):
            raise self.unsupported(f"{name} is {value!r:.80}; {_listed(choices)} can be run")
        return value

    def group_size(self, default: int | None = None, name: str = "group_size") -> int | None:
        """The number of inputs per scale; None for a whole row, which configs write as -1."""
        value = self.values.get(name, default)
        if value is None or (type(value) is int and value == -1):
            return None
        if type(value) is not int or value <= 0 or value % 8:
            raise self.unsupported(f"{name} is {value!r:.80}; multiples of 8 can be run, and -1 for whole rows")
        return value

    def block(self, name: str) -> tuple[int, int]:
        """The rows and columns that share a scale."""
        value = self.values.get(name)
        if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)):
            raise self.unsupported(f"{name} is {value!r:.80}; two positive numbers can be run")
        return value[0], value[1]

    def part(self, name: str) -> Settings:
        """The object under `name`; empty if absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise ModelFilesError(f"{self.file}: quantization_config.{name} must be an object, not {value!r:.80}.")
        return Settings(self.file, value or {}, self.model_type)

    def unsupported(self, fault: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.file}: in quantization_config {fault}.")


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(str(choice) for choice in choices)


def base_names(tensors: Tensors, leaf: str) -> Iterator[str]:
    """The prefixes of the names that end in `leaf`, sorted: "….q_proj." for ".qweight"."""
    return iter(sorted(name[: -len(leaf)] for name in tensors if name.endswith(leaf)))


def take(
    tensors: Tensors, name: str, dtypes: Iterable[str], *shapes: tuple[int, ...], because: str = ""
) -> StoredTensor:
    """The tensor of this name, which must have one of the dtypes and, if given, one of the shapes.

    Raises ModelFilesError; `because` says there what the tensor belongs to.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelFilesError(
            f"{_any_file(tensors)}: {name} is missing{because}. The files are incomplete, or their quantization_config "
            "is that of another model; download them again."
        )
    if tensor.dtype not in dtypes:
        raise ModelFilesError(f"{tensor.file}: {name} is stored as {tensor.dtype}, not as {' or '.join(dtypes)}.")
    if shapes and tensor.shape not in shapes:
        needed = " or ".join(str(list(shape)) for shape in shapes)
        raise ModelFilesError(
            f"{tensor.file}: {name} has shape {list(tensor.shape)}, but must have {needed}{because}. The files are "
            "damaged, or their quantization_config is that of another model."
        )
    return tensor


def matrix(tensor: StoredTensor) -> tuple[int, int]:
    """The shape of a tensor that must have two non-empty dimensions. Raises ModelFilesError."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise ModelFilesError(f"{tensor.file}: {tensor.name} must be a matrix, but has shape {list(tensor.shape)}.")
    return tensor.shape[0], tensor.shape[1]


def groups(inputs: int, group_size: int | None, tensor: StoredTensor) -> int:
    """The number of scales in a row of `inputs` values. Raises UnsupportedModelError unless groups divide it evenly."""
    size = group_size or inputs
    if inputs % size:
        raise UnsupportedModelError(
            f"{tensor.file}: {tensor.name} has {inputs} inputs, which are no whole number of groups of {size}."
        )
    return inputs // size


def _any_file(tensors: Tensors) -> Path:
    return next((tensor.file for tensor in tensors.values()), Path())
