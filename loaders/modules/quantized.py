"""Quantized parameters: which stored tensors each is dequantized from, stacked where experts are fused.

The layer's buffer holds the quantized tensors, as they are stored, instead of the parameter. Their views are bound to
`Packed.operands`, and the parameter is dequantized from there just before its module runs.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats.schemes import Codebook, Gptq, Lossless, Pieces, Scheme, Words
from loaders.formats.weights import Contents, PackedWeight
from loaders.modules.conversion import TensorSlice, model_slices
from loaders.modules.layout import TORCH_DTYPES
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes


@dataclass(frozen=True, eq=False)
class Packed:
    """One parameter, dequantized from `members`: one weight, or several of one shape and scheme, in order.

    `operands` holds the stored tensors' views by role, [members, …] where they are stacked; binding a layer sets them.
    """

    shape: tuple[int, ...]
    scheme: Scheme
    members: tuple[PackedWeight, ...]
    operands: dict[str, Any] = field(default_factory=dict)

    @property
    def stacked(self) -> bool:
        """Whether the weights of single experts are stacked."""
        return len(self.shape) > len(self.members[0].shape)

    @cached_property
    def uniform(self) -> bool:
        """Whether all members are dequantized alike, so that one call can do all of them."""
        return all(member.scheme == self.scheme for member in self.members)

    @property
    def experts(self) -> int:
        """How many experts the parameter holds, as its first dimension; 0 where it is a plain matrix."""
        of_one = isinstance(self.scheme, Pieces) and not self.scheme.by_expert
        return self.shape[0] if len(self.shape) == 3 and not of_one else 0

    def has_code(self, bits: int) -> bool:
        """Whether it is stored without loss, with codes of so many bits that can lie apart from their rests."""
        is_coded = isinstance(self.scheme, Lossless) and self.scheme.bits == bits
        return is_coded and all(member.checksum for member in self.members)

    def members_of(self, parameter: Tensor) -> Tensor:
        """The parameter's shape split by stacked members: [experts, members of each, outputs, inputs]."""
        return parameter.unflatten(1, (-1, self.members[0].shape[0])) if self.stacked else parameter

    def stored(self, role: str) -> tuple[StoredTensor, ...]:
        return tuple(member.operands[role] for member in self.members)

    @property
    def all_stored(self) -> Iterator[StoredTensor]:
        return (tensor for member in self.members for tensor in member.stored)

    def tensors(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Role, shape and dtype of the tensors that the buffer holds instead of the parameter."""
        stack = (len(self.members),) if self.stacked else ()
        return [
            (role, stack + tensor.shape, TORCH_DTYPES[tensor.dtype])
            for role, tensor in self.members[0].operands.items()
        ]

    def view(self, memory: Tensor) -> Tensor:
        """The parameter [shape] in `memory` (flat, its dtype), in the order in which dequantizing writes it."""
        if self.scheme.input_major:
            *rest, outputs, inputs = self.shape
            return memory.view(*rest, inputs, outputs).mT
        return memory.view(self.shape)


def packed_parameters(model: PreTrainedModel, contents: Contents) -> dict[str, Packed]:
    """The quantized parameters of a model by name; quantized weights that the model does not use are left out.

    Raises ModelFilesError for wrong shapes and tensors, UnsupportedModelError where the weights of one parameter are
    quantized differently, or only some of them are.
    """
    stand_ins = {name: weight.stand_in for name, weight in contents.packed.items()}
    by_target: dict[str, list[TensorSlice]] = {}
    for part in model_slices(model, stand_ins):
        by_target.setdefault(part.target, []).append(part)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in by_target}
    return {
        target: _packed(model, target, shapes[target], sorted(parts, key=lambda part: part.position), contents)
        for target, parts in by_target.items()
    }


def _packed(
    model: PreTrainedModel, target: str, shape: tuple[int, ...], parts: Sequence[TensorSlice], contents: Contents
) -> Packed:
    stored = [contents.packed[part.stored.name] for part in parts]
    members = [_checked(weight) for weight in stored]
    if any(member.scheme != members[0].scheme for member in members):  # some are in the natural order, some are not
        members = stored
    if isinstance(model.get_submodule(target.rpartition(".")[0]), Conv1D):
        raise UnsupportedModelError(f"{parts[0].stored.file}: {target} is used transposed, so it cannot be packed.")
    first, position = members[0], 0
    for part, member in zip(parts, members):
        size = math.prod(member.shape)
        if part.transposed or (part.start, part.count, part.position) != (0, size, position):
            raise UnsupportedModelError(f"{part.stored.file}: {member.name} is packed, so it cannot be rearranged.")
        if _form(member) != _form(first):
            raise UnsupportedModelError(
                f"{part.stored.file}: {first.name} and {member.name} are parts of {target}, but packed differently."
            )
        position += size
    if position != math.prod(shape):
        raise UnsupportedModelError(f"{parts[0].stored.file}: only parts of {target} are packed: {first.name}, …")
    if len(members) > 1 and (len(shape) != len(first.shape) + 1 or len(members) % shape[0]):
        raise UnsupportedModelError(
            f"{parts[0].stored.file}: {target} {list(shape)} is made of {len(members)} packed weights, which are no "
            f"whole number for each expert: {first.name}, …"
        )
    return Packed(shape, first.scheme, tuple(members))


def _form(weight: PackedWeight) -> object:
    """What must be equal for weights to be stacked: everything but bitsandbytes' offset, which each weight has."""
    scheme = weight.scheme
    return (
        replace(scheme, nested_offset=0.0) if isinstance(scheme, Codebook) else scheme,
        weight.shape,
        [(role, tensor.dtype, tensor.shape) for role, tensor in weight.operands.items()],
    )


def _checked(weight: PackedWeight) -> PackedWeight:
    """`weight` after its input order has been read, if it has one: usually that is the natural one and not needed.

    Raises ModelFilesError for an order that names groups that do not exist.
    """
    if not isinstance(weight.scheme, (Gptq, Words)) or weight.scheme.ordered:
        return weight
    role = "g_idx" if isinstance(weight.scheme, Gptq) else "weight_g_idx"
    stored, size = weight.operands[role], weight.scheme.group_size
    order = array("i", read_tensor_bytes(stored))
    if min(order) < 0 or max(order) >= len(order) // size:
        raise ModelFilesError(f"{stored.file}: {stored.name} names groups beyond the {len(order) // size} there are.")
    if any(group != index // size for index, group in enumerate(order)):
        return weight
    operands = {name: tensor for name, tensor in weight.operands.items() if name != role}
    return replace(weight, scheme=replace(weight.scheme, ordered=True), operands=operands)


def by_any_name(packed: Mapping[str, Packed], names: Sequence[str]) -> Packed | None:
    """The quantized parameter that has one of these names."""
    return next((packed[name] for name in names if name in packed), None)
