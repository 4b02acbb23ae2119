"""Finds the byte ranges of each layer on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from loaders.adapters.merge import Addition, additions, cut_at, with_replaced
from loaders.checkpoint.spec import DTYPE_NAMES
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.io.byte_ranges import ByteRange, ByteRanges, in_file_order
from loaders.modules.conversion import TensorSlice, model_slices
from loaders.modules.layout import TORCH_DTYPES, TensorPlace
from loaders.modules.skeleton import Skeleton, UnitLayout
from loaders.safetensors_files.headers import STORED_ITEMSIZE, Checkpoint, StoredTensor, read_tensor_bytes

MAX_BIAS_BYTES = 1 << 24
WEIGHTS = ("weight", "qweight", "weight_packed", "weight.absmax")  # stored names of the weight beside a bias
COMPUTE_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def map_sources(skeleton: Skeleton, checkpoint: Checkpoint) -> tuple[tuple[ByteRanges, ...], ByteRanges]:
    """The byte ranges of each of `skeleton.layers`, in order, and those of `skeleton.embeddings_and_head`.

    Stored tensors the model does not use are ignored. Raises ModelFilesError for missing tensors and wrong shapes,
    UnsupportedModelError for tensors that cannot be read as byte ranges.
    """
    by_name = _parts_by_name(skeleton, checkpoint)
    layers = (*skeleton.layers, skeleton.embeddings_and_head)
    packed = (*skeleton.packed, *skeleton.decoded_at_load)
    added = _additions(skeleton, checkpoint, by_name)
    if twice := [parameter.name for parameter in packed if parameter.name in by_name]:
        raise ModelFilesError(
            f"{checkpoint.directory}: {twice[0]} is stored twice, packed and as it is, perhaps under another name it "
            "is tied to. The files do not say which one is meant."
        )
    for layer in layers:
        by_name |= {_full_name(layer, place): _stacked(place, layer.stored[place]) for place in layer.stored}
    by_name |= {parameter.name: [] for parameter in skeleton.decoded_at_load}
    names = (_full_name(layer, place.name) for layer in layers for place in layer.layout.places)
    if missing := [name for name in names if name not in by_name]:
        raise ModelFilesError(_lacking(checkpoint, missing))
    *sources, embeddings_and_head = (_unit_ranges(layer, by_name, added) for layer in layers)
    return tuple(sources), embeddings_and_head


def code_sources(skeleton: Skeleton) -> tuple[ByteRanges, ...]:
    """The byte ranges of each of `skeleton.codes`."""
    return tuple(
        _unit_ranges(code, {_full_name(code, place): _stacked(place, code.stored[place]) for place in code.stored}, {})
        for code in skeleton.codes
    )


def _lacking(checkpoint: Checkpoint, missing: list[str]) -> str:
    if missing == ["lm_head.weight"]:
        return (
            f"{checkpoint.directory}: lm_head.weight is missing, which writes the text. The model makes embeddings or "
            "scores, or its files are incomplete: then download them again."
        )
    fault = f"{len(missing)} tensors are missing, the first is {missing[0]}"
    if file := checkpoint.absent.get(missing[0]):
        fault += f", which the index places in {file}, but the file does not hold it"
    return f"{checkpoint.directory}: {fault}. The files are incomplete or belong to another model; download them again."


def _parts_by_name(skeleton: Skeleton, checkpoint: Checkpoint) -> dict[str, list[TensorSlice]]:
    """The parts of each tensor, by the name of its slot."""
    by_name: dict[str, list[TensorSlice]] = {}
    parameters = (*skeleton.packed, *skeleton.decoded_at_load)
    packed = {tensor for parameter in parameters for tensor in parameter.packed.all_stored}
    plain = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor not in packed}
    for part in model_slices(skeleton.model, plain):
        by_name.setdefault(part.target, []).append(part)
    used = {part.stored.name for parts in by_name.values() for part in parts} | {tensor.name for tensor in packed}
    _refuse_biases(plain.values(), used)
    if checkpoint.adapter:
        by_name = with_replaced(skeleton.model, checkpoint.adapter, by_name)
    for alias, name in skeleton.tied.items():
        if alias in by_name:  # if both are stored they are equal: tensors that differ are not tied
            parts = by_name.pop(alias)
            by_name.setdefault(name, parts)
        elif checkpoint.adapter and name in checkpoint.adapter.replaced:
            raise UnsupportedModelError(
                f"{checkpoint.adapter.directory}: it has a {name} of its own, but no {alias}, which is the same tensor "
                "in the model. Merge it with PEFT, which then stores both."
            )
    return by_name


def _additions(
    skeleton: Skeleton, checkpoint: Checkpoint, by_name: Mapping[str, list[TensorSlice]]
) -> Mapping[str, list[Addition]]:
    """What an adapter adds to each tensor. Raises UnsupportedModelError for quantized tensors."""
    if checkpoint.adapter is None:
        return {}
    tied = {*skeleton.tied, *skeleton.tied.values()}
    added = additions(skeleton.model, checkpoint.adapter, by_name, tied)
    packed = {parameter.name for parameter in (*skeleton.packed, *skeleton.decoded_at_load)}
    if both := sorted(packed & added.keys()):
        raise UnsupportedModelError(
            f"{checkpoint.adapter.directory}: {both[0]}, which it changes, is packed ({checkpoint.directory.name}); an "
            "adapter is merged exactly into 16- and 32-bit weights alone. Give the model that was packed, or merge the "
            "adapter into that and pack the result."
        )
    return added


def _refuse_biases(stored: Iterable[StoredTensor], used: set[str]) -> None:
    """Reject non-zero biases that the model does not have: ignoring them would change every text.

    used: the names of the stored tensors that the model uses. Raises UnsupportedModelError.
    """
    for tensor in stored:
        module = tensor.name.removesuffix(".bias")
        if tensor.name in used or module == tensor.name or tensor.nbytes > MAX_BIAS_BYTES:
            continue
        if used.isdisjoint(f"{module}.{leaf}" for leaf in WEIGHTS) or not _has_values(tensor):
            continue
        raise UnsupportedModelError(
            f"{tensor.file}: it holds {tensor.name}, but the model of config.json has no such bias. Its model_type may "
            'be wrong, or a line like "attention_bias": true or "mlp_bias": true is missing.'
        )


def _has_values(tensor: StoredTensor) -> bool:
    return bool(torch.frombuffer(bytearray(read_tensor_bytes(tensor)), dtype=TORCH_DTYPES[tensor.dtype]).any())


def _full_name(layer: UnitLayout, place: str) -> str:
    return f"{layer.name}.{place}" if layer.name else place


def _stacked(place: str, stored: tuple[StoredTensor, ...]) -> list[TensorSlice]:
    """Tensors of one shape, one after the other."""
    count = math.prod(stored[0].shape)
    return [TensorSlice(place, index * count, tensor, 0, count) for index, tensor in enumerate(stored)]


def _unit_ranges(
    layer: UnitLayout, by_name: Mapping[str, list[TensorSlice]], added: Mapping[str, list[Addition]]
) -> ByteRanges:
    ranges = (
        _byte_range(piece, place, addition)
        for place in layer.layout.places
        for name in [_full_name(layer, place.name)]
        for part in by_name[name]
        for piece, addition in cut_at(part, added.get(name, ()))
    )
    return tuple(_merged(in_file_order(ranges)))


def _byte_range(part: TensorSlice, place: TensorPlace, addition: Addition | None) -> ByteRange:
    stored, itemsize = part.stored, STORED_ITEMSIZE[part.stored.dtype]
    if place.dtype in COMPUTE_DTYPES and stored.dtype not in DTYPE_NAMES:
        raise UnsupportedModelError(
            f"{stored.file}: {stored.name} is stored as {stored.dtype}, but nothing says how its values are scaled. "
            "The quantization_config, or a tensor beside this one, is missing."
        )
    return ByteRange(
        file=stored.file,
        file_offset=stored.offset + part.start * itemsize,
        nbytes=part.count * itemsize,
        stored_dtype=stored.dtype,
        buffer_offset=place.offset + part.position * place.dtype.itemsize,
        buffer_dtype=place.dtype,
        update=addition.update if addition else None,
        update_start=addition.start if addition else 0,
    )


def _merged(ranges: Iterable[ByteRange]) -> list[ByteRange]:
    merged: list[ByteRange] = []
    for one in ranges:
        if merged and _continues(merged[-1], one):
            merged[-1] = replace(merged[-1], nbytes=merged[-1].nbytes + one.nbytes)
        else:
            merged.append(one)
    return merged


def _continues(one: ByteRange, after: ByteRange) -> bool:
    """Whether `after` starts where `one` ends, on disk and in the buffer, with equal dtypes, and nothing is added."""
    if one.update or after.update:
        return False
    return (after.file, after.file_offset, after.buffer_offset, after.stored_dtype, after.buffer_dtype) == (
        one.file, one.file_stop, one.buffer_stop, one.stored_dtype, one.buffer_dtype
    )  # fmt: skip
