"""Which stored elements make up each tensor of the model.

Files and model do not always agree: names differ, and transformers fuses the experts of a layer into one tensor.
transformers has the code that converts one into the other, and this code only moves data. We run it once on numbered
rows: where the numbers end up says which stored elements belong where.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.safetensors_files.headers import StoredTensor

# Columns of a numbered row. A conversion that moves data within rows, or computes, would disturb them.
COLUMNS = 4

LAYER = re.compile(r".*?\.\d+\.")  # a name up to its layer number


@dataclass(frozen=True)
class TensorSlice:
    """`count` elements of a stored tensor from `start` on, which go to the model's `target` from `position` on.

    transposed: positions count the target's elements with its last two dimensions exchanged, as it is stored.
    """

    target: str
    position: int
    stored: StoredTensor
    start: int
    count: int
    transposed: bool = False


@dataclass(frozen=True)
class _Move:
    """`count` consecutive elements of source number `source` from `start` on go to `position` of a conversion's result.

    The result is named by what follows the layer number: a conversion is worked out for one layer and reused for
    the others, which saves 0.1 s for each layer of 128 experts.
    """

    result: str
    result_shape: tuple[int, ...]
    position: int
    source: int
    start: int
    count: int
    transposed: bool


Shapes = Mapping[str, tuple[int, ...]]
Sources = dict[str, list[StoredTensor]]  # by the pattern of the converter that their names match


def model_slices(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> list[TensorSlice]:
    """The parts of every tensor in the model's state dict; stored tensors that the model does not use are left out.

    Raises ModelFilesError for a wrong shape, UnsupportedModelError for a conversion that does not only move whole rows.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = model.base_model_prefix
    parts: list[TensorSlice] = []
    gathered: dict[str, Sources] = defaultdict(lambda: defaultdict(list))
    for name in sorted(tensors, key=dot_natural_key):  # the order in which experts are stacked
        target, pattern = rename_source_key(name, renamings, converters, prefix, shapes)
        if target not in shapes and name in shapes:
            target, pattern = rename_source_key(name, [], [], prefix, shapes)
        if target not in shapes:
            continue
        if pattern is None or _is_as_stored(converters, pattern, shapes[target], tensors[name]):
            parts.append(_whole(target, shapes[target], tensors[name]))
        else:
            gathered[target][pattern].append(tensors[name])
    return parts + _converted_parts(model, converters, gathered, shapes)


def transposed_names(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> set[str]:
    """The parameters that `tensors` hold with their last two dimensions exchanged."""
    if not any(_is_transposing(transform) for transform in get_model_conversion_mapping(model)):
        return set()
    return {part.target for part in model_slices(model, tensors) if part.transposed}


def _is_transposing(transform: object) -> bool:
    return isinstance(transform, WeightConverter) and any(isinstance(each, Transpose) for each in transform.operations)


def _is_as_stored(
    converters: Sequence[WeightConverter], pattern: str, shape: tuple[int, ...], stored: StoredTensor
) -> bool:
    """Whether a conversion transposes only what has not the model's shape, and this tensor has it.

    transformers asks the tensor itself, for which a stand-in is too narrow.
    """
    converter = next(each for each in converters if pattern in each.source_patterns)
    asks = [each for each in converter.operations if isinstance(each, Transpose) and each.check_dims]
    return bool(asks) and stored.shape == shape


def _whole(target: str, shape: tuple[int, ...], stored: StoredTensor) -> TensorSlice:
    _check_shape(target, shape, stored.shape, [stored])
    return TensorSlice(target, 0, stored, 0, math.prod(shape))


def _converted_parts(
    model: PreTrainedModel, converters: Sequence[WeightConverter], gathered: Mapping[str, Sources], shapes: Shapes
) -> list[TensorSlice]:
    """The parts of all tensors that a conversion builds; `gathered` maps the first result to the sources."""
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known: dict[object, list[_Move]] = {}
    parts: list[TensorSlice] = []
    for target, sources in gathered.items():
        layer = LAYER.match(target)
        head = layer[0] if layer else ""
        stored = [tensor for tensors in sources.values() for tensor in tensors]
        key = (target[len(head) :], *((pattern, t.shape) for pattern, tensors in sources.items() for t in tensors))
        if key not in known:
            converter = deepcopy(by_pattern[next(iter(sources))])
            known[key] = _moves(model, converter, target, head, sources, shapes)
        for move in known[key]:
            name = head + move.result
            _check_shape(name, shapes.get(name, ()), move.result_shape, stored)
            source = stored[move.source]
            parts.append(TensorSlice(name, move.position, source, move.start, move.count, move.transposed))
    return parts


def _moves(
    model: PreTrainedModel, converter: WeightConverter, target: str, head: str, sources: Sources, shapes: Shapes
) -> list[_Move]:
    """Run a conversion on numbered rows and read off where they went."""
    stored = [tensor for tensors in sources.values() for tensor in tensors]
    first_numbers, stand_ins = _number_rows(stored)
    remaining: Iterator[Any] = iter(stand_ins)
    for pattern, tensors in sources.items():
        for tensor in tensors:
            converter.add_tensor(target, tensor.name, pattern, next(remaining))
    try:
        results = converter.convert(target, model=model, config=model.config)
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{stored[0].file}: {target} cannot be built from {_described(stored)}: {error}"
        ) from error
    moves: list[_Move] = []
    for name, result in results.items():
        if name not in shapes:
            continue
        result, shape = result[0] if isinstance(result, list) else result, shapes[name]
        if transposed := _is_transposed(result, shape):
            result, shape = result.mT, (*shape[:-2], shape[-1], shape[-2])
        rows = _rows(name, shape, result, stored)
        for position, source, start, count in _runs(rows, math.prod(shape) // max(len(rows), 1), first_numbers):
            moves.append(_Move(name.removeprefix(head), shapes[name], position, source, start, count, transposed))
    return moves


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


def _is_transposed(result: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the few columns of the stand-ins are now rows, and the columns are as many as the model's."""
    if len(shape) < 2 or tuple(result.shape) != (*shape[:-2], min(shape[-2], COLUMNS), shape[-1]) or shape[-1] < 2:
        return False
    return bool((result.flatten()[: shape[-1]].diff() == COLUMNS).all())


def _rows(name: str, shape: tuple[int, ...], result: Tensor, stored: Sequence[StoredTensor]) -> Tensor:
    """The row numbers of a converted stand-in, in order; rejects a conversion that moves anything but whole rows."""
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


def _runs(rows: Tensor, width: int, first_numbers: Tensor) -> list[tuple[int, int, int, int]]:
    """Consecutive rows as (position, source, start, count), counted in elements; a row has `width` of them."""
    breaks = (rows[1:] != rows[:-1] + 1).nonzero().flatten() + 1
    begins = torch.cat([torch.zeros(min(len(rows), 1), dtype=torch.int64), breaks])
    counts = torch.diff(begins, append=torch.tensor([len(rows)]))
    sources = torch.searchsorted(first_numbers, rows[begins], right=True) - 1
    starts = rows[begins] - first_numbers[sources]
    return list(zip(*(t.tolist() for t in (begins * width, sources, starts * width, counts * width))))


def _check_shape(name: str, needed: tuple[int, ...], found: tuple[int, ...], stored: Sequence[StoredTensor]) -> None:
    if needed != found:
        raise ModelFilesError(
            f"{stored[0].file}: {name} must have shape {list(needed)} by config.json, but {_described(stored)} gives "
            f"{list(found)}. Config and weights are not of the same model; download both again."
        )


def _described(stored: Sequence[StoredTensor]) -> str:
    more = f" and {len(stored) - 1} more" if len(stored) > 1 else ""
    return f"{stored[0].name} {stored[0].dtype} {list(stored[0].shape)}{more}"
