"""GGUF: each tensor states its own ggml type; values may be stored in another row order or with an offset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from loaders.errors import ModelFilesError
from loaders.formats.schemes import Ggml, Piece, Pieces
from loaders.formats.weights import PackedWeight, Settings, Tensors
from loaders.gguf.header import GgufTensor
from loaders.gguf.placement import Part
from loaders.gguf.types import READABLE


@dataclass(frozen=True)
class GgufFormat:
    kind: str  # of most bytes

    @property
    def label(self) -> str:
        return f"GGUF {self.kind}"

    @classmethod
    def read(cls, settings: Settings) -> GgufFormat:
        """Settings that `gguf_config` made; no config.json has them."""
        return cls(settings.choice("kind", READABLE))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        parts: dict[str, list[GgufTensor]] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, GgufTensor) or not tensor.is_packed:
                continue
            if tensor.part:
                parts.setdefault(tensor.part.whole.name, []).append(tensor)
                continue
            rows = tensor.values[0]
            if tensor.paired_heads and rows % (2 * tensor.paired_heads):
                raise ModelFilesError(
                    f"{tensor.file}: {name} has {rows} rows, which {tensor.paired_heads} heads cannot have in pairs."
                )
            if tensor.tiles and (tensor.groups < 1 or tensor.values[-1] % (tensor.tiles * tensor.groups)):
                raise ModelFilesError(
                    f"{tensor.file}: {name} has {tensor.values[-1]} columns, which {tensor.tiles * tensor.groups} "
                    "heads cannot have."
                )
            yield PackedWeight(name, tensor.values, _scheme(tensor), {"blocks": tensor})
        for of_one in parts.values():
            yield _assembled(of_one)


def _scheme(tensor: GgufTensor) -> Ggml:
    return Ggml(tensor.kind, tensor.paired_heads, tensor.less, tensor.negated_log, tensor.tiles, tensor.groups)


def _check_fits(tensor: GgufTensor, part: Part) -> None:
    """Raises ModelFilesError unless the tensor has the values of its rows of the weight."""
    whole, place = part.whole, part.placement
    rows, columns = whole.matrix
    count = place.count(rows)
    row = columns if not place.turned else count // max(place.heads, 1)
    is_vector = len(whole.shape) - whole.by_expert == 1
    values = count * columns * (whole.shape[0] if whole.by_expert else 1)
    if count < 1 or math.prod(tensor.values) != values or (tensor.values[-1] != row and not is_vector):
        raise ModelFilesError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.values)}, which cannot be a part of {whole.name} "
            f"{list(whole.shape)}: its metadata say other sizes. The file is damaged; download it again."
        )


def _assembled(tensors: list[GgufTensor]) -> PackedWeight:
    """A weight of the parts that are stored. Raises ModelFilesError unless they are all of it."""
    found = [(tensor, tensor.part) for tensor in tensors if tensor.part]
    whole = found[0][1].whole
    if sum(math.prod(tensor.values) for tensor in tensors) != math.prod(whole.shape):
        shapes = ", ".join(f"{tensor.name} {list(tensor.values)}" for tensor in tensors)
        raise ModelFilesError(
            f"{tensors[0].file}: {whole.name} needs {list(whole.shape)}, but the file holds {shapes} of it. The file "
            "is damaged or incomplete; download it again."
        )
    for tensor, part in found:
        _check_fits(tensor, part)
    roles = {tensor.name.removeprefix(f"{whole.name}."): tensor for tensor in tensors}
    pieces = tuple(Piece(role, _scheme(tensor), part.placement) for role, (tensor, part) in zip(roles, found))
    return PackedWeight(whole.name, whole.shape, Pieces(pieces, whole.by_expert, whole.input_major), roles)
