"""Packs a checkpoint without loss into a new directory, layer by layer: memory holds one layer, as it is packed."""

from __future__ import annotations

import math
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loaders.checkpoint.read_spec import read_config
from loaders.errors import ModelFilesError
from loaders.formats.lossless import CHECKSUM, seed_of
from loaders.lossless.bins import CODE, KINDS, Bins
from loaders.lossless.checksum import checksum
from loaders.lossless.encode import Encoded, encode
from loaders.modules.conversion import TensorSlice, model_slices
from loaders.modules.layout import TORCH_DTYPES
from loaders.modules.skeleton import Skeleton
from loaders.progress import ByteProgress
from loaders.quantize.interrupts import interrupts_deferred
from loaders.quantize.lossless_recipe import LEAST_SAVED, LosslessRecipe, stack_of, unit_of
from loaders.quantize.recipe import EXPERT
from loaders.quantize.report import QuantizationReport
from loaders.quantize.work_directory import allocated, clear, put_in_place, work_directory, write_others
from loaders.quantize.write import cores, one_thread_an_operation, seconds_each
from loaders.safetensors_files.headers import StoredTensor, read_header, read_tensor_bytes
from loaders.safetensors_files.shards import check_space, described, header, lay_out, write_index

STORED_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
OF_FILE = "packed_without_loss_of"  # names the source whose layers a partial directory holds

Tensors = dict[str, Tensor]


def as_model_allows(recipe: LosslessRecipe, skeleton: Skeleton) -> LosslessRecipe:
    """Without the matrices that the model does not use as they are stored, or only stacked with others."""
    targets: dict[str, list[TensorSlice]] = defaultdict(list)
    for part in model_slices(skeleton.model, recipe.source.tensors):
        targets[part.target].append(part)
    packed = {matrix.name for matrix in recipe.matrices}
    usable = {part.stored.name for parts in targets.values() if _is_usable(parts, packed) for part in parts}
    return replace(recipe, left_out=frozenset(packed - usable))


def _is_usable(parts: Sequence[TensorSlice], packed: Collection[str]) -> bool:
    """Whether a parameter is one packed matrix, or a stack of equal ones."""
    first = parts[0].stored
    are_whole = all(part.count == math.prod(part.stored.shape) and not part.transposed for part in parts)
    are_alike = all((part.stored.shape, part.stored.dtype) == (first.shape, first.dtype) for part in parts)
    are_stacked = len(parts) == 1 or all(EXPERT.search(part.stored.name) for part in parts)
    return are_whole and are_alike and are_stacked and all(part.stored.name in packed for part in parts)


def write_lossless(
    recipe: LosslessRecipe, directory: Path, fingerprint: str, progress: ByteProgress | None = None
) -> QuantizationReport:
    """Pack the checkpoint into `directory`, which appears once it is complete.

    After an interruption or a crash the layers that are done are kept beside it, and the next call resumes from there.
    Raises ModelFilesError if the disk is too full, `directory` holds something else, or another process writes there.
    """
    with work_directory(directory) as work:
        _take_up(work, fingerprint)
        check_space(
            work,
            max(0, recipe.nbytes - allocated(work)),
            "Packed weights are kept on disk for the next starts: free some space, or choose another disk with "
            "--quantized-directory DIR.",
        )
        units = _units(recipe)
        done, total = 0, sum(tensor.nbytes for unit in units.values() for tensor in unit)
        packed = {matrix.name for matrix in recipe.matrices}
        with one_thread_an_operation(), ThreadPoolExecutor(cores()) as pool:
            for file, unit in zip(_files(work, units), units.values()):
                if not file.exists():
                    _write_unit(file, _encoded_unit(unit, packed, recipe.bits, seed_of(fingerprint), pool))
                done += sum(tensor.nbytes for tensor in unit)
                if progress:
                    progress(done, total)
        write_index(work, {file: list(read_header(file).values()) for file in _files(work, units)})
        config = recipe.config(read_config(recipe.source.directory), fingerprint)
        write_others(recipe.source.directory, config, work)
        report = QuantizationReport(str(recipe.source.directory), fingerprint, recipe.label, 0.0, 0.0, "", {})
        report.write(work)
        with interrupts_deferred():
            (work / OF_FILE).unlink()
            put_in_place(work, directory)
    return report


def _take_up(work: Path, fingerprint: str) -> None:
    """Keep the layers that an interrupted call for the same source has left; remove anything else."""
    of = work / OF_FILE
    goes_on = of.is_file() and of.read_text() == fingerprint
    clear(work, keep=[of, *work.glob("*.safetensors")] if goes_on else ())
    of.write_text(fingerprint)


def _units(recipe: LosslessRecipe) -> dict[str, list[StoredTensor]]:
    units: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensor in recipe.source.tensors.values():
        units[unit_of(tensor)].append(tensor)
    return units


def _files(work: Path, units: Mapping[str, object]) -> Iterator[Path]:
    return (work / f"model-{number:05}-of-{len(units):05}.safetensors" for number in range(1, len(units) + 1))


def _encoded_unit(
    unit: Sequence[StoredTensor], packed: set[str], bits: int, seed: int, pool: ThreadPoolExecutor
) -> Tensors:
    """The tensors of a layer as they will be stored: codes before what streams where they stay on the device."""
    matrices = [tensor for tensor in unit if tensor.name in packed]
    encoded = dict(zip(matrices, pool.map(partial(_encoded, bits=bits), matrices)))
    stacks: dict[object, list[StoredTensor]] = defaultdict(list)
    for matrix in matrices:
        stacks[stack_of(matrix)].append(matrix)
    codes: Tensors = {}
    rests: Tensors = {tensor.name: _read(tensor) for tensor in unit if tensor.name not in packed}
    for stack in stacks.values():
        alike = _padded([encoded[matrix] for matrix in stack])
        if sum(one.nbytes for one in alike) > (1 - LEAST_SAVED) * sum(matrix.nbytes for matrix in stack):
            rests |= {matrix.name: _read(matrix) for matrix in stack}
            continue
        for matrix, one in zip(stack, alike):
            codes[f"{matrix.name}.{CHECKSUM}"] = checksum(vars(one)) + seed
            for role, tensor in vars(one).items():
                (codes if role in CODE else rests)[f"{matrix.name}.{role}"] = tensor
    return codes | rests


def _encoded(matrix: StoredTensor, bits: int) -> Encoded:
    return encode(_read(matrix), Bins(KINDS[matrix.dtype], bits))


def _padded(stack: Sequence[Encoded]) -> list[Encoded]:
    """The same with equal lengths: weights that are stacked must not differ in them."""
    further = max(len(one.further) for one in stack)
    apart = max(len(one.apart) for one in stack)
    return [
        replace(
            one,
            further=F.pad(one.further, (0, further - len(one.further))),
            apart_at=_repeated(one.apart_at, apart),
            apart=_repeated(one.apart, apart),
        )
        for one in stack
    ]


def _repeated(entries: Tensor, count: int) -> Tensor:
    """So many entries; the first stands for those that are missing."""
    return torch.cat((entries, entries[:1].expand(count - len(entries))))


def _read(tensor: StoredTensor) -> Tensor:
    stored = torch.frombuffer(bytearray(read_tensor_bytes(tensor)) or bytearray(1), dtype=torch.uint8)[: tensor.nbytes]
    return stored.view(TORCH_DTYPES[tensor.dtype]).view(tensor.shape)


def _write_unit(file: Path, tensors: Tensors) -> None:
    """Write a file that appears once it is on disk. Raises ModelFilesError."""
    stored = (described(name, STORED_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items())
    [shard] = lay_out(stored, file.parent, shard_bytes=sys.maxsize).values()
    partial = file.with_suffix(".part")
    try:
        with partial.open("wb") as stream:
            stream.write(header(shard))
            for tensor in shard:
                stream.write(tensors[tensor.name].contiguous().view(-1).view(torch.uint8).numpy().data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
    except OSError as error:
        raise ModelFilesError(
            f"{file}: writing failed: {error.strerror}. What was written is removed; choose another disk with "
            "--quantized-directory DIR."
        ) from error


def encoding_seconds(recipe: LosslessRecipe, begun: int = 0) -> float:
    """Estimated seconds to pack on these cores if the disk keeps up; begun: bytes already written.

    Measured by packing random weights, which takes about 0.1 s.
    """
    weights = sum(math.prod(matrix.shape) for matrix in recipe.matrices)
    pace = seconds_each(lambda rows: encode(rows, Bins(KINDS["BF16"], recipe.bits)))
    return max(0.0, 1 - begun / recipe.nbytes) * weights * pace
