"""Which stored elements make up each tensor of the model.

Files and model do not always agree: names differ, and transformers fuses the experts of a layer into one tensor. It
knows how to get from one to the other, in code that only moves data. So that code is run once on numbered rows, and
where the numbers end up says which stored elements belong where.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from .errors import ModelFilesError, UnsupportedModelError
from .safetensors_files import StoredTensor

# Columns of a numbered row. A conversion that moves data within rows, or computes, would disturb them.
COLUMNS = 4


@dataclass(frozen=True)
class Piece:
    """`count` consecutive elements of a stored tensor from `start` on, which go to `target` from `position` on."""

    target: str
    position: int
    stored: StoredTensor
    start: int
    count: int


Sources = dict[str, list[StoredTensor]]  # by the pattern of the converter that they match


def model_pieces(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> list[Piece]:
    """What every tensor of the model's state dict consists of; stored tensors the model has no use for are left out.

    Raises ModelFilesError for a wrong shape and UnsupportedModelError for a conversion that is no move of whole rows.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = model.base_model_prefix
    pieces: list[Piece] = []
    gathered: dict[str, Sources] = defaultdict(lambda: defaultdict(list))
    for name in sorted(tensors, key=dot_natural_key):  # the order in which experts are stacked
        target, pattern = rename_source_key(name, renamings, converters, prefix, shapes)
        if target not in shapes and name in shapes:
            target, pattern = rename_source_key(name, [], [], prefix, shapes)
        if target in shapes and pattern is not None:
            gathered[target][pattern].append(tensors[name])
        elif target in shapes:
            pieces.append(_whole(target, shapes[target], tensors[name]))
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for target, sources in gathered.items():
        pieces += _converted(model, by_pattern[next(iter(sources))], target, sources, shapes)
    return pieces


def _whole(target: str, shape: tuple[int, ...], stored: StoredTensor) -> Piece:
    _check_shape(target, shape, stored.shape, [stored])
    return Piece(target, 0, stored, 0, math.prod(shape))


def _converted(
    model: PreTrainedModel,
    converter: WeightConverter,
    target: str,
    sources: Sources,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Piece]:
    """Run a conversion on numbered rows and read off where they went. `target` is the first of its results."""
    converter = deepcopy(converter)
    stored = [tensor for tensors in sources.values() for tensor in tensors]
    first_numbers, numbered = _number_rows(stored)
    numbers: Iterator[Any] = iter(numbered)
    for pattern, tensors in sources.items():
        for tensor in tensors:
            converter.add_tensor(target, tensor.name, pattern, next(numbers))
    try:
        results = converter.convert(target, model=model, config=model.config)
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(f"{target} cannot be built from {_described(stored)}: {error}") from error
    pieces: list[Piece] = []
    for name, result in results.items():
        result = result[0] if isinstance(result, list) else result
        rows = _rows(name, shapes[name], result, stored)
        pieces += _runs(name, math.prod(shapes[name]) // max(len(rows), 1), rows, stored, first_numbers)
    return pieces


def _number_rows(stored: Sequence[StoredTensor]) -> tuple[Tensor, list[Tensor]]:
    """For each tensor a small stand-in whose rows count 0, COLUMNS, 2 COLUMNS, ... and whose columns count 0, 1, 2, 3.

    Also the number at which each tensor starts; numbers of different tensors never follow each other.
    """
    first_numbers, stand_ins, number = [], [], 0
    for tensor in stored:
        *rows, columns = tensor.shape if len(tensor.shape) > 1 else (*tensor.shape, 1)
        columns = min(columns, COLUMNS)
        count = math.prod(rows)
        grid = (number + torch.arange(count))[:, None] * COLUMNS + torch.arange(columns)
        stand_ins.append(grid.view(*rows, columns) if len(tensor.shape) > 1 else grid.view(tensor.shape))
        first_numbers.append(number)
        number += count + 1
    return torch.tensor(first_numbers), stand_ins


def _rows(name: str, shape: tuple[int, ...], result: Tensor, stored: Sequence[StoredTensor]) -> Tensor:
    """The numbers of the rows of a converted stand-in, in order; refuses where anything but whole rows moved."""
    columns = min(shape[-1], COLUMNS) if len(shape) > 1 else 1
    grid = result.reshape(-1, result.shape[-1] if result.dim() > 1 else 1)
    rows = grid[:, 0] // COLUMNS
    if grid.shape[1] != columns or not torch.equal(grid, rows[:, None] * COLUMNS + torch.arange(columns)):
        raise UnsupportedModelError(
            f"{name} is stored transposed or otherwise rearranged ({_described(stored)}); only whole rows can be "
            "moved on the way from disk. Load the model with transformers and save it again to store it as it is used."
        )
    found = tuple(result.shape)
    if len(shape) > 1:
        found = (*found[:-1], next((t.shape[-1] for t in stored if t.shape[-1] != shape[-1]), shape[-1]))
    _check_shape(name, shape, found, stored)
    return rows


def _runs(name: str, width: int, rows: Tensor, stored: Sequence[StoredTensor], first_numbers: Tensor) -> list[Piece]:
    """Consecutive rows as pieces; a row has `width` elements."""
    breaks = (rows[1:] != rows[:-1] + 1).nonzero().flatten() + 1
    starts = torch.cat([torch.zeros(min(len(rows), 1), dtype=torch.int64), breaks])
    ends = torch.cat([breaks, torch.tensor([len(rows)])])[: len(starts)]
    owners = torch.searchsorted(first_numbers, rows[starts], right=True) - 1
    offsets = rows[starts] - first_numbers[owners]
    return [
        Piece(name, start * width, stored[owner], offset * width, (end - start) * width)
        for start, end, owner, offset in zip(starts.tolist(), ends.tolist(), owners.tolist(), offsets.tolist())
    ]


def _check_shape(
    name: str, needed: tuple[int, ...], found: tuple[int, ...], stored: Sequence[StoredTensor]
) -> None:
    if needed != found:
        raise ModelFilesError(
            f"{stored[0].file}: {name} must have shape {list(needed)} by config.json, but {_described(stored)} gives "
            f"{list(found)}. Config and weights are not of the same model; download both again."
        )


def _described(stored: Sequence[StoredTensor]) -> str:
    more = f" and {len(stored) - 1} more" if len(stored) > 1 else ""
    return f"{stored[0].name} {stored[0].dtype} {list(stored[0].shape)}{more}"
