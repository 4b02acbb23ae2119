"""Codes and rests restore every pattern of 16 bits, in the sizes that are promised."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loaders.dequantize.lossless.plain import approximated, restored
from loaders.dequantize.plain import decode
from loaders.formats.schemes import Lossless
from loaders.lossless import encode as encoding
from loaders.lossless.bins import KINDS, Bins, can_encode
from loaders.lossless.encode import Encoded, encode
from loaders.lossless.planes import from_planes, into_planes

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
ALL_BINS = [Bins(kind, bits) for kind in KINDS.values() for bits in (3, 4, 5)]


def named(bins: Bins) -> str:
    return f"{bins.kind.name}-{bins.bits}"


def patterns(weights: Tensor) -> Tensor:
    return weights.contiguous().view(torch.int16)


def decoded(encoded: Encoded, bins: Bins) -> Tensor:
    columns = encoded.top.shape[1] * 32
    out = torch.empty(len(encoded.top), columns, dtype=DTYPES[bins.kind.name])
    decode(Lossless(bins.bits, bins.kind.name), vars(encoded), out)
    return out


def check(weights: Tensor, bins: Bins) -> Encoded:
    encoded = encode(weights, bins)
    assert torch.equal(patterns(decoded(encoded, bins)), patterns(weights))
    return encoded


def heavy_tails(count: int) -> Tensor:
    """Student's t with 5 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)
    normal, squares = torch.randn(count, generator=generator), torch.randn(5, count, generator=generator).square()
    return normal / squares.mean(0).sqrt()


@pytest.mark.parametrize("bins", ALL_BINS, ids=named)
@pytest.mark.parametrize("mixed", [False, True])
def test_every_pattern_is_restored(bins: Bins, mixed: bool) -> None:
    """Infinities, numbers that are none, with what they carry, and the smallest numbers among them."""
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1)) if mixed else torch.arange(1 << 16)
    check(order.to(torch.int32).to(torch.int16).view(DTYPES[bins.kind.name]).view(64, -1), bins)


def adversaries() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(1 << 13, generator=generator) / 50
    outliers, zeros = normal.clone(), normal.clone()
    outliers[::100] *= 1e8
    zeros[torch.rand(len(zeros), generator=generator) < 0.6] = 0
    rows = torch.logspace(-38, 38, 32)[:, None].expand(32, 256).flatten() * normal.sign()
    return {
        "zeros": torch.zeros(1 << 13),
        "negative zeros": -torch.zeros(1 << 13),
        "equal": torch.full((1 << 13,), 0.37),
        "smallest": torch.full((1 << 13,), 1e-40),
        "infinite": torch.full((1 << 13,), -math.inf),
        "outliers": outliers,
        "mostly zeros": zeros,
        "rows of all sizes": rows,
        "heavy tails": heavy_tails(1 << 13) / 50,
        "integers": (normal * 5000).round() / 128,
    }


@pytest.mark.parametrize("bins", ALL_BINS, ids=named)
@pytest.mark.parametrize("name", adversaries())
def test_adversaries_are_restored(bins: Bins, name: str) -> None:
    check(adversaries()[name].to(DTYPES[bins.kind.name]).view(32, -1), bins)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL_BINS),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from((512, 1 << 20)),
)
def test_any_bits_are_restored(bins: Bins, rows: int, blocks: int, seed: int, part: int) -> None:
    """Of any shape, encoded in parts of any size, decoded from any block on."""
    bits = torch.randint(-(1 << 15), 1 << 15, (rows, 256 * blocks), generator=torch.Generator().manual_seed(seed))
    weights = bits.to(torch.int16).view(DTYPES[bins.kind.name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PART", part)
        encoded = check(weights, bins)
    begin = seed % (rows * blocks) * 256
    tail = restored(bins, vars(encoded), begin, weights.numel())
    kept = torch.ones(weights.numel(), dtype=torch.bool)
    kept[encoded.apart_at.to(torch.int64)] = False
    assert torch.equal(tail[kept[begin:]], patterns(weights).flatten()[begin:][kept[begin:]])


@pytest.mark.parametrize(
    ("bits", "most_rest", "most_in_all"), [(3, 8.5, 11.9), (4, 7.2, 11.6), (5, 5.85, 0.71 * 16)], ids=str
)
def test_bits_a_weight(bits: int, most_rest: float, most_in_all: float) -> None:
    """With heavy tails, bits of the rest, which are at most 0.45 of 16 beside a 4-bit code, and in all."""
    bins = Bins(KINDS["BF16"], bits)
    encoded = encode((heavy_tails(1 << 20) / 50).to(torch.bfloat16).view(1024, -1), bins)
    rest = encoded.fixed.nbytes + encoded.further.nbytes + encoded.apart.nbytes + encoded.apart_at.nbytes
    assert 8 * rest / (1 << 20) <= most_rest
    assert 8 * encoded.nbytes / (1 << 20) <= most_in_all


@pytest.mark.parametrize("bins", ALL_BINS, ids=named)
def test_a_code_alone_approximates(bins: Bins) -> None:
    """By a relative error that falls with its bits: that of the low bin, and half a bin's width elsewhere."""
    weights = (torch.randn(1 << 16, generator=torch.Generator().manual_seed(3)) / 50).to(DTYPES[bins.kind.name])
    encoded = encode(weights.view(64, -1), bins)
    near = approximated(bins, vars(encoded), 0, 1 << 16).view(weights.dtype)
    assert torch.equal(near.sign(), torch.where(weights == 0, near.sign(), weights.sign()))
    error = (near.double() - weights.double()).norm() / weights.double().norm()
    assert error < {3: 0.19, 4: 0.1, 5: 0.06}[bins.bits]


@pytest.mark.parametrize("bins", ALL_BINS, ids=named)
def test_damaged_bytes_are_never_read_beyond(bins: Bins) -> None:
    """They give other weights, whatever the places in them say."""
    weights = heavy_tails(1 << 12) / 50
    weights[100] = math.inf  # stored apart
    encoded = encode(weights.to(DTYPES[bins.kind.name]).view(16, -1), bins)
    generator = torch.Generator().manual_seed(4)
    for role, tensor in vars(encoded).items():
        noise = torch.randint(0, 256, (tensor.nbytes,), dtype=torch.uint8, generator=generator)
        damaged = {**vars(encoded), role: noise.view(tensor.dtype).view(tensor.shape)}
        out = torch.empty(16, 256)
        decode(Lossless(bins.bits, bins.kind.name), damaged, out)
        assert not torch.equal(out, decoded(encoded, bins).float()), role


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    stored = into_planes(numbers, bits)
    assert stored.nbytes == 8 * bits
    for begin, end in ((0, 64), (8, 24), (56, 64)):
        assert torch.equal(from_planes(stored, bits, 64, begin, end), numbers[begin:end])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 32), True), ((8, 48), False), ((4, 32), False), ((0, 32), False), ((1 << 14, 1 << 14), False)],
)
def test_which_matrices_can_be_encoded(shape: tuple[int, int], expected: bool) -> None:
    assert can_encode(math.prod(shape), shape[1]) is expected
