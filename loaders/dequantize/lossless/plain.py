"""Restores weights from codes and rests, or approximates them by the codes alone, in plain torch.

Bytes of a damaged file give wrong weights, never a read outside of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from loaders.dequantize.side_by_side import block_values, for_each
from loaders.formats.schemes import Lossless
from loaders.lossless.bins import BLOCK, GROUP, KINDS, PADDING, Bins, planes
from loaders.lossless.planes import from_planes

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16}
SIGN = 0x8000
NUMBERS = {4: torch.int32, 2: torch.int64, 1: torch.complex128}  # of 16 bits for each weight of a byte, by its bits
SHARE = 4  # of the values that other formats decode at a time: 35 bytes for each are in use meanwhile


def lossless(scheme: Lossless, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """out [N, K]. operands: the fields of `loaders.lossless.encode.Encoded`."""
    if not out.is_contiguous():
        values = torch.empty(out.shape, dtype=operands["apart"].dtype, device=out.device)
        lossless(scheme, operands, values)
        out.copy_(values)
        return
    bins, flat, apart = Bins(KINDS[scheme.dtype], scheme.bits), out.view(-1), operands["apart"]
    step = max(block_values(out) // SHARE // BLOCK, 1) * BLOCK

    def restore(part: slice) -> None:
        flat[part].copy_(restored(bins, operands, part.start, part.stop).view(apart.dtype))

    for_each(restore, (slice(begin, min(begin + step, len(flat))) for begin in range(0, len(flat), step)), out)
    places = operands["apart_at"].clamp(0, len(flat) - 1).to(torch.int64)
    flat.index_copy_(0, places, apart.to(flat.dtype))


def approximate(bins: Bins, code: Tensor, top: Tensor, out: Tensor) -> None:
    """Fill `out` (flat, any float dtype) with weights of which only `code` and `top` are known."""
    operands, dtype = {"code": code, "top": top}, FLOATS[bins.kind.name]
    step = max(block_values(out) // BLOCK, 1) * BLOCK

    def fill(part: slice) -> None:
        out[part].copy_(approximated(bins, operands, part.start, part.stop).view(dtype))

    for_each(fill, (slice(begin, min(begin + step, len(out))) for begin in range(0, len(out), step)), out)


def restored(bins: Bins, operands: Mapping[str, Tensor], begin: int, end: int) -> Tensor:
    """Weights `begin` to `end` (multiples of 256), as int16 patterns, those that are stored apart excepted."""
    count = operands["top"].numel() * GROUP
    codes = from_planes(operands["code"], bins.bits, count, begin, end).to(torch.int32)
    rests = from_planes(operands["fixed"], bins.fixed, count, begin, end).to(torch.int32)
    rests += _further(bins, operands, codes, begin, end) << bins.fixed
    patterns = _from_tops(bins, operands["top"], _table(_below_top(bins, bins.starts), codes.device)[codes], begin, end)
    patterns -= rests
    zeros = _table((0,) * len(bins.widths) + (SIGN,) * len(bins.widths), codes.device)[codes]
    return torch.where(rests == bins.zero, zeros, patterns).to(torch.int16)  # no other bin is as wide as the low one


def approximated(bins: Bins, operands: Mapping[str, Tensor], begin: int, end: int) -> Tensor:
    """Weights `begin` to `end`, as int16 patterns, by `code` and `top` alone: the middles of their bins.

    Where float16 ends below a group's bins, the group is approximated as if its top were a little higher.
    """
    count, first, patterns = operands["top"].numel() * GROUP, 0, None
    for width, table in zip(planes(bins.bits), numbers_by_byte(bins, operands["code"].device)):
        stored = operands["code"][first + begin * width // 8 : first + end * width // 8]
        part = table.index_select(0, stored.to(torch.int64)).view(torch.int16)
        patterns = part if patterns is None else patterns.add_(part)
        first += count * width // 8
    assert patterns is not None
    return _from_tops(bins, operands["top"], patterns, begin, end, least=bins.middles[-1] + 1)


@cache
def numbers_by_byte(bins: Bins, device: torch.device) -> tuple[Tensor, ...]:
    """For each plane, by byte: what its weights add to their tops, int16 [256, weights in a byte], as single numbers.

    One lookup for all weights of a byte takes a tenth of the time of one each.
    """
    of_code, done, tables = _below_top(bins, bins.middles), 0, []
    for width in planes(bins.bits):
        fields = [[(byte >> at & (1 << width) - 1) << done for at in range(0, 8, width)] for byte in range(256)]
        added = torch.tensor(of_code, dtype=torch.int32)[torch.tensor(fields)]
        added -= of_code[0] if done else 0  # the first plane counts what is the same for all codes
        tables.append(added.to(torch.int16).view(NUMBERS[width]).flatten().to(device))
        done += width
    return tuple(tables)


@cache
def _below_top(bins: Bins, distances: tuple[int, ...]) -> tuple[int, ...]:
    """By code: what its distance adds to the top, and the sign."""
    return tuple((sign << 15) - 1 - distance for sign in (0, 1) for distance in distances)


@cache
def _table(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Uploaded once: an upload would wait for the device."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def _from_tops(bins: Bins, stored: Tensor, below: Tensor, begin: int, end: int, least: int = 0) -> Tensor:
    tops = stored.view(-1)[begin // GROUP : end // GROUP].to(below.dtype)
    tops += bins.kind.base
    tops <<= bins.kind.shift
    tops.clamp_(min=least)
    by_group = below.view(-1, GROUP)
    by_group += tops[:, None]
    return below


def _further(bins: Bins, operands: Mapping[str, Tensor], codes: Tensor, begin: int, end: int) -> Tensor:
    """The further bits of each rest, int32, of which there are at most 5: they lie within two bytes."""
    stored = operands["further"]
    lengths = _table(2 * bins.further, codes.device)[codes].view(-1, BLOCK)
    places = lengths.cumsum(1, dtype=torch.int32)
    places -= lengths
    places += operands["begin"][begin // BLOCK : end // BLOCK, None]
    bits = places.view(-1)
    at = (bits >> 3).clamp_(0, len(stored) - PADDING)
    windows = stored[1:][at].to(torch.int32)
    windows <<= 8
    windows |= stored[at]
    bits &= 7
    windows >>= bits
    windows &= _table(2 * tuple((1 << count) - 1 for count in bins.further), codes.device)[codes]
    return windows
