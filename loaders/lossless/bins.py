"""How the magnitudes of a group of weights are divided into bins, by the bits of a code. Imports no torch.

The bits of a float without its sign are an integer that grows with the magnitude. Each group of weights has a top above
all of them, and a weight's distance below the top is divided into a bin, which its code names, and a rest within the
bin. All of it is integer arithmetic, so nothing can round. Bins are powers of two wide: an octave is 128 bfloat16s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

GROUP = 32  # weights with a common top, one byte: 0.25 bits a weight
PADDING = 2  # bytes behind the last further bit: a decoder reads two at a time
BLOCK = 256  # weights whose variable-length bits begin at a stored place: 0.125 bits a weight
CODE = ("code", "top", "begin")  # fields of `Encoded` that can stay where they are; the others are the rest


@dataclass(frozen=True)
class FloatKind:
    """A 16-bit float. finer: its values per bfloat16, by the mantissa. infinity: of bits without the sign.

    A top is (stored byte + `base`) << `shift`, so it has three bits of mantissa; for bfloat16 it lies between 2^-23 and
    448, and what lies above is kept apart from the code.
    """

    name: str
    finer: int
    infinity: int
    base: int
    shift: int


KINDS = {
    "BF16": FloatKind("BF16", 1, 0x7F80, 104 * 8, 4),
    "F16": FloatKind("F16", 8, 0x7C00, 0, 7),
}

# By the bits of the code: widths of bfloat16 bins from the top downwards, and how many of each; below lies the low bin.
# On normal weights the rest then takes 8.0, 6.8 and 5.6 bits, on a Student t of 5 degrees, with heavier tails, 8.4, 7.2
# and 5.8.
RUNS = {3: ((64, 1), (128, 2)), 4: ((32, 2), (64, 4), (128, 1)), 5: ((32, 12), (64, 2), (128, 1))}
LOW_BITS = 10


@dataclass(frozen=True)
class Bins:
    """The bins of a code of `bits` bits: the sign above the number of the bin.

    A rest has `fixed` low bits that are stored for every weight, and further ones by its bin.
    """

    kind: FloatKind
    bits: int

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Widths of bins and how many have them, without the low bin."""
        return tuple((width * self.kind.finer, count) for width, count in RUNS[self.bits])

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Distances in each bin; the last is the low one."""
        return *(width for width, count in self.runs for _ in range(count)), self.kind.finer << LOW_BITS

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The least distance in each bin."""
        return tuple(accumulate(self.widths[:-1], initial=0))

    @cached_property
    def fixed(self) -> int:
        """Bits of the narrowest bin, at most a byte."""
        return min(min(self.widths).bit_length() - 1, 8)

    @cached_property
    def further(self) -> tuple[int, ...]:
        """Bits of each bin's rests above the fixed ones."""
        return tuple(width.bit_length() - 1 - self.fixed for width in self.widths)

    @cached_property
    def middles(self) -> tuple[int, ...]:
        """The distance that stands for a bin where only the code is known; an octave below the low bin's top for it."""
        octave = 128 * self.kind.finer
        return *(start + width // 2 for start, width in zip(self.starts, self.widths[:-1])), self.starts[-1] + octave

    @property
    def low(self) -> int:
        """The number of the low bin, whose last two rests mean zero and a weight that is stored apart."""
        return len(self.widths) - 1

    @property
    def zero(self) -> int:
        return self.widths[-1] - 2

    @property
    def apart(self) -> int:
        return self.widths[-1] - 1


def planes(bits: int) -> tuple[int, ...]:
    """The widths of the planes that numbers of so many bits are stored in, each of which divides a byte."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def plane_bytes(bits: int, count: int) -> int:
    """Bytes of `count` numbers, a multiple of 8, in their planes."""
    return bits * count // 8


def stored_shapes(bins: Bins, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of those fields of `Encoded` that the size of a matrix determines, by name."""
    count = rows * columns
    return {
        "code": ("U8", (plane_bytes(bins.bits, count),)),
        "top": ("U8", (rows, columns // GROUP)),
        "begin": ("I32", (count // BLOCK,)),
        "fixed": ("U8", (plane_bytes(bins.fixed, count),)),
    }


def can_encode(count: int, inputs: int) -> bool:
    """Whether a matrix of `count` weights, `inputs` a row, has whole groups and blocks, and not too many."""
    return count > 0 and inputs % GROUP == 0 and count % BLOCK == 0 and count < 1 << 28
