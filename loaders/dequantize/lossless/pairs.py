"""Refuses a code and a rest that are not of the same weights: decoded together they would give plausible others."""

from __future__ import annotations

from array import array

import torch

from loaders.errors import ModelFilesError
from loaders.lossless.checksum import checksum
from loaders.modules.skeleton import UnitLayout
from loaders.safetensors_files.headers import read_tensor_bytes


def check_pairs(layer: UnitLayout) -> None:
    """Compare the codes and rests that are bound to a layer with their checksums; the host waits for the device once.

    Raises ModelFilesError, naming the weight.
    """
    if layer.code is None:
        return
    weights = [parameter.packed for parameter in layer.code.packed.values()]
    for weight, found in zip(weights, torch.cat([checksum(weight.operands) for weight in weights]).tolist()):
        name, stored = weight.members[0].name, weight.members[0].checksum
        assert stored is not None
        if array("q", read_tensor_bytes(stored)) != array("q", [found]):
            raise ModelFilesError(
                f"{stored.file}: the code and the rest of {name} are not those of the same weights: they do not have "
                f"the checksum that was stored with them. Remove {stored.file.parent} to pack the weights again."
            )
