"""Merges an adapter into weights while they are read, as PEFT's `merge_and_unload` does on a CPU.

scaling * (B @ A) is computed in float32, whatever the adapter's dtype, and added to the weight in the compute dtype: in
bfloat16 the sum is rounded once. Blocks are whole rows, and their boundaries depend on the matrix alone, so the sum is
bitwise the same wherever a weight is placed and however it is split on the way there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loaders.adapters.adapter import Adapter, LoraUpdate
from loaders.errors import UnsupportedModelError
from loaders.modules.conversion import TensorSlice, model_slices
from loaders.modules.layout import TORCH_DTYPES
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes

BLOCK_VALUES = 1 << 19  # 2 MB in float32: larger ones leave the cache


@dataclass(frozen=True, eq=False)
class Update:
    """The update of a weight [rows, columns]: scaling * B @ A, or its transpose."""

    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def add_to(self, values: Tensor, start: int) -> None:
        """Add the row-major elements from `start` on to `values` (1-D, any float dtype), in place."""
        rows, columns = self.shape
        step, stop = self._rows_of_block, start + len(values)
        with torch.inference_mode():
            scratch = torch.empty(step * columns)  # one for all blocks: allocating takes 10 times as long as the sum
            for first in range(start // columns // step * step, -(-stop // columns), step):
                block = self._block(first, min(first + step, rows), scratch)
                begin = first * columns
                inside = slice(max(start, begin), min(stop, begin + len(block)))
                values[inside.start - start : inside.stop - start] += block[inside.start - begin : inside.stop - begin]

    @property
    def _rows_of_block(self) -> int:
        """Blocks of about equal size: products with few rows use other kernels, which round differently."""
        rows, columns = self.shape
        blocks = -(-rows * columns // BLOCK_VALUES)
        return -(-rows // max(1, min(blocks, rows // 64)))

    def _block(self, first: int, stop: int, scratch: Tensor) -> Tensor:
        """Compute rows of the update, [rows * columns], in `scratch` or new memory."""
        a, b = self._factors
        if self.transposed:
            return (b @ a[:, first:stop] * self.scaling).mT.flatten()
        product = scratch[: (stop - first) * a.shape[1]]
        torch.mm(b[first:stop], a, out=product.view(stop - first, -1))
        return product.mul_(self.scaling)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """A and B in float32, read once."""
        return _values(self.a), _values(self.b)


@dataclass(frozen=True)
class Addition:
    """Elements of an update, from `start` on, that are added to a parameter from `position` on."""

    position: int
    count: int
    update: Update
    start: int


def _values(stored: StoredTensor) -> Tensor:
    content = bytearray(read_tensor_bytes(stored))
    return torch.frombuffer(content, dtype=TORCH_DTYPES[stored.dtype]).view(stored.shape).to(torch.float32)


def with_replaced(
    model: PreTrainedModel, adapter: Adapter, by_name: Mapping[str, Sequence[TensorSlice]]
) -> dict[str, list[TensorSlice]]:
    """The parts of each tensor of the model, with the adapter's replacements."""
    replaced: dict[str, list[TensorSlice]] = defaultdict(list)
    parts = model_slices(model, adapter.replaced)
    _refuse_unknown(adapter, adapter.replaced.keys() - {part.stored.name for part in parts})
    for part in parts:
        replaced[part.target].append(part)
    return {name: list(parts) for name, parts in by_name.items()} | replaced


def additions(
    model: PreTrainedModel, adapter: Adapter, by_name: Mapping[str, Sequence[TensorSlice]], tied: Collection[str]
) -> dict[str, list[Addition]]:
    """What is added to each tensor of the model, in the order of positions.

    by_name: the parts that each tensor is read from. An update belongs to the stored tensor of its module's name, such
    as a single expert's, or else to where such a tensor would go. Raises UnsupportedModelError for modules that the
    model lacks, and for tied ones, which would change together.
    """
    updates = {f"{update.module}.weight": update for update in adapter.updates}
    found: dict[str, list[Addition]] = defaultdict(list)
    matched: set[str] = set()
    stored = [part for parts in by_name.values() for part in parts if part.stored.name in updates]
    others = {name: u.stand_in for name, u in updates.items() if name not in {part.stored.name for part in stored}}
    for part in (*stored, *model_slices(model, _as_stored(model, others))):
        update = updates[part.stored.name]
        if part.transposed:
            raise UnsupportedModelError(
                f"{adapter.directory}: it changes {update.module}, which the model's files hold transposed. Merge it "
                "with PEFT."
            )
        if part.target in tied:
            raise UnsupportedModelError(
                f"{adapter.directory}: it changes {update.module}, which the model uses for its embeddings and its "
                "head alike. Merge it with PEFT, which then stores both."
            )
        found[part.target].append(Addition(part.position, part.count, _update(model, part, update), part.start))
        matched.add(part.stored.name)
    _refuse_unknown(adapter, updates.keys() - matched)
    return {name: sorted(parts, key=lambda part: part.position) for name, parts in found.items()}


def _as_stored(model: PreTrainedModel, stand_ins: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Stand-ins in the stored shape: GPT-2's matrices are stored [inputs, outputs]."""
    return {
        name: replace(tensor, shape=tensor.shape[::-1]) if _is_conv(model, name) else tensor
        for name, tensor in stand_ins.items()
    }


def _update(model: PreTrainedModel, part: TensorSlice, update: LoraUpdate) -> Update:
    transposed = update.embedding or _is_conv(model, part.target)
    merged = Update(update.a, update.b, update.scaling, transposed)
    if part.stored.shape != merged.shape:
        raise UnsupportedModelError(
            f"{update.b.file}: the adapter's update of {update.module} has shape {list(merged.shape)}, but the weight "
            f"has {list(part.stored.shape)}. The adapter was made for another model."
        )
    return merged


def _is_conv(model: PreTrainedModel, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    except AttributeError:
        return False


def _refuse_unknown(adapter: Adapter, unknown: Collection[str]) -> None:
    if unknown:
        raise UnsupportedModelError(
            f"{adapter.directory}: it changes {len(unknown)} tensors that the model has not, the first is "
            f"{min(unknown)}. The adapter was made for another model."
        )


def cut_at(part: TensorSlice, added: Sequence[Addition]) -> Iterator[tuple[TensorSlice, Addition | None]]:
    """A part of a tensor in pieces, each with the update that covers it, or None."""
    position, stop = part.position, part.position + part.count
    for addition in added:
        begin, end = max(position, addition.position), min(stop, addition.position + addition.count)
        if begin >= end:
            continue
        if position < begin:
            yield _piece(part, position, begin), None
        moved = replace(addition, position=begin, count=end - begin, start=addition.start + begin - addition.position)
        yield _piece(part, begin, end), moved
        position = end
    if position < stop or not part.count:
        yield _piece(part, position, stop), None


def _piece(part: TensorSlice, begin: int, end: int) -> TensorSlice:
    return replace(part, position=begin, start=part.start + begin - part.position, count=end - begin)
