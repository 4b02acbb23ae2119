"""16-bit weights without loss in fewer bits, as `loaders.lossless` divides them into codes and rests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from loaders.errors import ModelFilesError
from loaders.formats.schemes import Lossless
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, take
from loaders.lossless.bins import BLOCK, GROUP, KINDS, PADDING, RUNS, Bins, stored_shapes
from loaders.safetensors_files.headers import StoredTensor

METHOD = "lossless"
CHECKSUM = "checksum"  # of a code and its rest; files of earlier versions have none
MARK = "packed_from"  # the fingerprint of the files that were packed; those of an earlier version have none


def seed_of(mark: str) -> int:
    """What is added, modulo 2^64, to the checksums of files with this mark: files of another model have others."""
    return int.from_bytes(sha256(mark.encode()).digest()[:8], "little", signed=True) if mark else 0


@dataclass(frozen=True)
class LosslessFormat:
    """Weights [N, K] of which `NAME.top` is [N, K / 32]; K holds whole groups and N * K whole blocks."""

    bits: int
    mark: str = ""

    @property
    def label(self) -> str:
        return f"16 bits without loss, with {self.bits}-bit codes"

    @classmethod
    def read(cls, settings: Settings) -> LosslessFormat:
        mark = settings.values.get(MARK, "")
        if not isinstance(mark, str):
            raise settings.unsupported(f"{MARK} is {mark!r:.80}; a text can be used")
        return cls(settings.choice("bits", tuple(RUNS)), mark)

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".code"):
            yield self._weight(base, tensors)

    def _weight(self, name: str, tensors: Tensors) -> PackedWeight:
        because = f" for {name}"
        top = take(tensors, f"{name}.top", ["U8"], because=because)
        if len(top.shape) != 2 or 0 in top.shape:
            raise ModelFilesError(f"{top.file}: {top.name} must be a matrix, but has shape {list(top.shape)}.")
        shape = top.shape[0], top.shape[1] * GROUP
        count = math.prod(shape)
        if count % BLOCK:
            raise ModelFilesError(f"{top.file}: {name} has {count:,} weights, which are no whole blocks of {BLOCK}.")
        apart = take(tensors, f"{name}.apart", KINDS, because=because)
        bins = Bins(KINDS[apart.dtype], self.bits)
        operands = {
            **{
                role: take(tensors, f"{name}.{role}", [dtype], stored, because=because)
                for role, (dtype, stored) in stored_shapes(bins, *shape).items()
            },
            "further": _some(take(tensors, f"{name}.further", ["U8"], because=because), PADDING),
            "apart_at": _some(take(tensors, f"{name}.apart_at", ["I32"], apart.shape, because=because), 1),
            "apart": apart,
        }
        has_checksum = f"{name}.{CHECKSUM}" in tensors
        checksum = take(tensors, f"{name}.{CHECKSUM}", ["I64"], (1,), because=because) if has_checksum else None
        return PackedWeight(name, shape, Lossless(self.bits, apart.dtype), operands, checksum, seed_of(self.mark))


def _some(tensor: StoredTensor, least: int) -> StoredTensor:
    if len(tensor.shape) != 1 or tensor.shape[0] < least:
        raise ModelFilesError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, but must have [{least} or more]."
        )
    return tensor
