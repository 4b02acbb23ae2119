"""Tensors that config.json ties, but of which the files hold two.

transformers ties them if their values are equal in the compute dtype, and otherwise keeps two tensors: so do we. Both
are read for the comparison, which few checkpoints need.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loaders.modules.conversion import TensorSlice, model_slices
from loaders.modules.layout import TORCH_DTYPES
from loaders.safetensors_files.headers import StoredTensor, read_bytes

CHUNK = 1 << 21  # elements compared at a time


def untie_what_differs(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> None:
    """Untie a parameter of `model` (on meta) where `tensors` hold other values for it."""
    tied = dict(model.all_tied_weights_keys)  # name -> the name of what it is tied to
    leaves = {name.rpartition(".")[0].rpartition(".")[2] for pair in tied.items() for name in pair}
    stored = {name: t for name, t in tensors.items() if name.rpartition(".")[0].rpartition(".")[2] in leaves}
    if len(stored) < 2:
        return
    by_target: dict[str, list[TensorSlice]] = {}
    for part in model_slices(model, stored):
        by_target.setdefault(part.target, []).append(part)
    for name, source in tied.items():
        ours, theirs = by_target.get(name), by_target.get(source)
        if ours and theirs and not _equal(ours, theirs, model.get_parameter(name).dtype):
            _untie(model, name)
            warnings.warn(
                f"{ours[0].stored.file}: config.json ties {name} to {source}, but the files hold different values for "
                "them: each is used as it is stored, as in transformers.",
                stacklevel=2,
            )


def _untie(model: PreTrainedModel, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    parameter = model.get_parameter(name)
    own = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
    model.get_submodule(owner)._parameters[leaf] = own
    model.all_tied_weights_keys.pop(name)


def _equal(ours: Sequence[TensorSlice], theirs: Sequence[TensorSlice], dtype: torch.dtype) -> bool:
    """Whether both are equal in `dtype`; parts of different shapes count as different."""
    pairs = list(zip(ours, theirs))
    if len(ours) != len(theirs) or any(a.count != b.count for a, b in pairs):
        return False
    starts = ((a, b, begin) for a, b in pairs for begin in range(0, a.count, CHUNK))
    return all(torch.equal(_values(a, begin, dtype), _values(b, begin, dtype)) for a, b, begin in starts)


def _values(part: TensorSlice, begin: int, dtype: torch.dtype) -> Tensor:
    stored = TORCH_DTYPES[part.stored.dtype]
    first = part.start + begin
    count = min(CHUNK, part.count - begin)
    content = read_bytes(part.stored, first * stored.itemsize, count * stored.itemsize)
    return torch.frombuffer(bytearray(content), dtype=stored).to(dtype)
