"""Dequantizes weights once, while they are loaded.

Embeddings and heads always: they are resident, and scratch memory for dequantizing them at every use would be as large
as the result. Layers if the plan has memory for them: on a CPU, passes over 135M parameters in Q4_1 then took a quarter
of the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from loaders.dequantize.stacks import decode_rows, decode_stack
from loaders.errors import ModelFilesError
from loaders.modules.layout import TORCH_DTYPES
from loaders.modules.quantized import Packed
from loaders.modules.skeleton import Skeleton, UnitLayout, make_parameters
from loaders.safetensors_files.headers import StoredTensor

CHUNK_BYTES = 4 << 20  # read at a time


def fill_decoded(skeleton: Skeleton, buffer: Tensor) -> None:
    """Fill the slots of `skeleton.decoded_at_load` in `buffer`.

    buffer: uint8, of `skeleton.embeddings_and_head`, on any device. Raises ModelFilesError if a file is too short or
    cannot be read.
    """
    places = {place.name: place for place in skeleton.embeddings_and_head.layout.places}
    for parameter in skeleton.decoded_at_load:
        _fill(parameter.packed, places[parameter.name].view(buffer))


def _fill(packed: Packed, out: Tensor) -> None:
    (member,) = packed.members
    ((role, stored),) = member.operands.items()
    if out.dim() == 1:
        out = out[None]
    rows = len(out)
    step = max(CHUNK_BYTES // (stored.nbytes // rows), 1)
    for begin in range(0, rows, step):
        part = out[begin : begin + step]
        decode_rows(packed.scheme, {role: _read_rows(stored, begin, len(part), rows)}, part)


def _read_rows(stored: StoredTensor, begin: int, count: int, rows: int) -> Tensor:
    """`count` of the `rows`, from `begin` on, in the stored dtype."""
    row_bytes = stored.nbytes // rows
    content = bytearray(count * row_bytes)
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.offset + begin * row_bytes)
            read = file.readinto(content)
    except OSError as error:
        raise ModelFilesError(f"{stored.file}: cannot be read ({error.strerror}).") from error
    if read != len(content):
        raise ModelFilesError(f"{stored.file}: it ends within {stored.name}. Download it again.")
    return torch.frombuffer(content, dtype=TORCH_DTYPES[stored.dtype]).view(count, math.prod(stored.shape) // rows)


def decode_layer(layer: UnitLayout, stored: Tensor, out: Tensor) -> None:
    """Dequantize a whole layer once, and bind it; `stored` is not needed any more then.

    stored: uint8, of `layer.layout`. out: uint8, of `layer.decoded.layout`, on the same device.
    """
    assert layer.decoded is not None
    layer.bind(make_parameters(layer.layout, stored))
    given = layer.layout.views(stored)
    parameters = []
    for name, view in layer.decoded.layout.views(out).items():
        if name in layer.packed:
            packed = layer.packed[name].packed
            view = packed.view(view.view(-1))
            decode_stack(packed, view)
            packed.operands.clear()
        else:
            view.copy_(given[name])
        parameters.append(nn.Parameter(view, requires_grad=False))
    layer.decoded.bind(tuple(parameters))
