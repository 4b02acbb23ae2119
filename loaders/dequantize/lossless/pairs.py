"""Refuses codes and rests that are not of the same weights, or damaged: decoded they would give plausible others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from loaders.errors import ModelFilesError
from loaders.lossless.checksum import checksum
from loaders.modules.quantized import Packed
from loaders.safetensors_files.headers import read_tensor_bytes


class UncheckedPairs:
    """The weights whose codes and rests have not been compared with their checksums, as they are once."""

    def __init__(self, weights: Iterable[Packed]):
        self._left = {
            packed: {*range(len(packed.members))}
            for packed in weights
            if all(member.checksum for member in packed.members)
        }

    def check(self, weights: Iterable[Packed], chosen: Tensor | None = None) -> None:
        """Compare what is bound to `operands` now. The host waits for the device where something is left to compare.

        chosen: of the experts, the only ones that are bound, any integer tensor. Raises ModelFilesError, naming the
        first weight that does not have its checksum.
        """
        if not self._left:
            return
        numbers = {packed: self._numbers(packed, chosen) for packed in weights if packed in self._left}
        sums = [_sums(packed, some) for packed, some in numbers.items() if some]
        found = torch.cat(sums).tolist() if sums else []
        stored = [(packed, number) for packed, some in numbers.items() for number in some]
        for (packed, number), one in zip(stored, found):
            _compare(packed, number, one)
            self._left[packed].remove(number)
            if not self._left[packed]:
                del self._left[packed]

    def _numbers(self, packed: Packed, chosen: Tensor | None) -> list[int]:
        """The members of a parameter that are bound and left."""
        left = self._left[packed]
        if chosen is None or not packed.stacked:
            return sorted(left)
        each, routed = len(packed.members) // packed.experts, {*chosen.unique().tolist()}
        return sorted(number for number in left if number // each in routed)


def _sums(packed: Packed, numbers: Sequence[int]) -> Tensor:
    operands = packed.operands
    if len(numbers) < len(packed.members):
        at = torch.tensor(numbers, device=operands["code"].device)
        operands = {role: tensor.index_select(0, at) for role, tensor in operands.items()}
    return checksum(operands, len(numbers))


def _compare(packed: Packed, number: int, found: int) -> None:
    weight = packed.members[number]
    stored = weight.checksum
    assert stored is not None
    expected = int.from_bytes(read_tensor_bytes(stored), "little")
    if (found + weight.seed - expected) % (1 << 64):
        raise ModelFilesError(
            f"{stored.file}: the code and the rest of {weight.name} are not those of the same weights, or are damaged: "
            f"they do not have the checksum that was stored with them. Remove {stored.file.parent} to pack the weights "
            "again."
        )
