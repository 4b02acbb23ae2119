"""Divides 16-bit floats into codes and rests; `decode` restores every bit pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loaders.lossless.bins import BLOCK, GROUP, PADDING, Bins
from loaders.lossless.planes import into_planes

PART = 1 << 20  # weights at a time; about 60 bytes each are in use meanwhile
WORD = 32
MASK = (1 << WORD) - 1


@dataclass(frozen=True)
class Encoded:
    """n weights, in the order of their matrix, whose rows hold whole groups.

    code uint8 [bits * n / 8], in planes. top uint8 [rows, columns / 32]. begin int32 [n / 256]: the bit of `further`
    where a block's begin. fixed uint8 [fixed * n / 8], in planes: the low bits of each rest. further uint8: the bits
    above these, as many as the bin has, the first weight's in the lowest bits. apart_at int32 [m], apart [m]: weights
    that have no code, in their own dtype; at least one entry, which may repeat what the code says.
    """

    code: Tensor
    top: Tensor
    begin: Tensor
    fixed: Tensor
    further: Tensor
    apart_at: Tensor
    apart: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())


@dataclass(frozen=True)
class _Divided:
    """Some weights: sign and bin, top of each group, rest, and which are stored apart."""

    codes: Tensor
    tops: Tensor
    rests: Tensor
    apart: Tensor


@torch.inference_mode()
def code_of(weights: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """`Encoded.code` and `Encoded.top` alone, with one dimension each, on the device of the weights."""
    bits = weights.view(torch.int16).flatten()
    divided = [_divide(bits[part], bins) for part in _parts(len(bits))]
    return into_planes(torch.cat([one.codes for one in divided]), bins.bits), torch.cat([one.tops for one in divided])


@torch.inference_mode()
def encode(weights: Tensor, bins: Bins) -> Encoded:
    """Encode a bfloat16 or float16 matrix for which `can_encode`."""
    bits = weights.contiguous().view(torch.int16).flatten()
    codes, tops, fixed, further, numbers, apart_at = [], [], [], _Bits(), [], []
    lengths_of = torch.tensor(bins.further, dtype=torch.uint8)
    for part in _parts(len(bits)):
        divided = _divide(bits[part], bins)
        codes.append(divided.codes)
        tops.append(divided.tops)
        fixed.append((divided.rests & (1 << bins.fixed) - 1).to(torch.uint8))
        lengths = lengths_of[(divided.codes & bins.low).to(torch.int32)]
        numbers.append(further.add(divided.rests >> bins.fixed, lengths))
        apart_at.append(divided.apart.nonzero()[:, 0] + part.start)
    at = torch.cat(apart_at).to(torch.int32)
    at = at if len(at) else at.new_zeros(1)
    return Encoded(
        into_planes(torch.cat(codes), bins.bits),
        torch.cat(tops).view(len(weights), -1),
        torch.cat(numbers),
        into_planes(torch.cat(fixed), bins.fixed),
        further.stored(),
        at,
        bits[at.to(torch.int64)].view(weights.dtype),
    )


def _parts(count: int) -> Iterator[slice]:
    return (slice(begin, min(begin + PART, count)) for begin in range(0, count, PART))


def _divide(bits: Tensor, bins: Bins) -> _Divided:
    """Of int16 [n] patterns."""
    kind = bins.kind
    magnitudes = bits.to(torch.int32) & 0x7FFF
    finite = magnitudes.masked_fill(magnitudes >= kind.infinity, 0).view(-1, GROUP)
    tops = ((finite.amax(1) >> kind.shift) + 1 - kind.base).clamp_(0, 255)
    distances = ((tops + kind.base << kind.shift)[:, None] - 1 - magnitudes.view(-1, GROUP)).flatten()
    starts = torch.tensor(bins.starts, dtype=torch.int32, device=bits.device)
    numbers = torch.bucketize(distances, starts[1:], right=True, out_int32=True)
    rests = distances - starts[numbers]
    is_zero = magnitudes == 0
    apart = (magnitudes >= kind.infinity) | (distances < 0) | (rests >= bins.zero)
    apart &= ~is_zero
    numbers.masked_fill_(apart | is_zero, bins.low)
    rests.masked_fill_(apart, bins.apart).masked_fill_(is_zero, bins.zero)
    codes = numbers.to(torch.uint8) | ((bits < 0).to(torch.uint8) << bins.bits - 1)
    return _Divided(codes, tops.to(torch.uint8), rests, apart)


class _Bits:
    """Numbers of different lengths, up to 5, one behind the other."""

    def __init__(self) -> None:
        self._count = 0
        self._words: list[Tensor] = []  # int64, of 32 bits each
        self._last = torch.zeros(1, dtype=torch.int64)  # a word that has room left

    def add(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        """Append int32 [n] numbers of uint8 [n] lengths; int32 [n / 256], the bit that each block begins at."""
        fours, widths = _joined(numbers.to(torch.int64), lengths.to(torch.int64))
        ends = widths.cumsum(0)
        begins = ends - widths
        at = begins + self._count % WORD
        fours <<= at & WORD - 1
        at >>= 5
        words = torch.zeros(int(at[-1]) + 2, dtype=torch.int64)
        words[0] = self._last
        words.index_add_(0, at, fours & MASK)  # no bit is set twice, so that adding joins them
        words.index_add_(0, at + 1, fours >> WORD)
        of_blocks = (begins[:: BLOCK // 4] + self._count).to(torch.int32)
        whole = (self._count % WORD + int(ends[-1])) // WORD
        self._words.append(words[:whole])
        self._last = words[whole : whole + 1]
        self._count += int(ends[-1])
        return of_blocks

    def stored(self) -> Tensor:
        """All of them, uint8, and some padding."""
        words = torch.cat((*self._words, self._last))
        stored = words.to(torch.int32).view(torch.uint8)  # the first byte of a word is its lowest
        return F.pad(stored[: -(-self._count // 8)], (0, PADDING))


def _joined(numbers: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Four numbers each as one: int64 [n / 4] of up to 20 bits, and their lengths."""
    for _ in range(2):
        pairs, widths = numbers.view(-1, 2), lengths.view(-1, 2)
        numbers, lengths = pairs[:, 0] | pairs[:, 1] << widths[:, 0], widths.sum(1)
    return numbers, lengths
