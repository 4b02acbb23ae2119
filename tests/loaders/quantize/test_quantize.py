"""Rounding to 4 and 8 bits: what is stored decodes to what the errors say, and close to the weights."""

import pytest
import torch

from loaders.dequantize.plain import decode
from loaders.formats.schemes import Words
from loaders.quantize.rounding import LEAST_VALUE, SERIAL_VALUES, pack_rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def random_rows(dtype: torch.dtype, rows: int = 24, columns: int = 256) -> torch.Tensor:
    return (0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))).to(dtype)


def decoded(words: torch.Tensor, scales: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    rows, inputs = words.shape[0], words.shape[1] * 32 // bits
    out = torch.empty(rows, inputs, dtype=dtype)
    decode(Words(bits, group, True), {"weight_packed": words, "weight_scale": scales}, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group", "most"), [(4, 128, 0.105), (4, 32, 0.09), (4, 256, 0.11), (8, 128, 0.0075)])
def test_errors_are_those_of_what_decodes(dtype, bits, group, most):
    rows = random_rows(dtype)
    before = rows.clone()
    words, scales, errors = pack_rows(rows, bits, group)
    assert torch.equal(rows, before), "the rows are only read"
    assert (words.dtype, words.shape, scales.dtype) == (torch.int32, (24, 256 * bits // 32), dtype)
    difference = decoded(words, scales, bits, group, dtype).double() - rows.double()
    relative = (difference.norm() / rows.double().norm()).item()
    assert errors.is_finite
    assert (errors.error / errors.norm) ** 0.5 == pytest.approx(relative, rel=1e-5)
    assert 0.1 * most < relative < most


def test_it_beats_rounding_to_the_nearest():
    """Plainly, the largest value at 7, the error is a sixth larger."""
    rows = random_rows(torch.float32)
    groups = rows.view(-1, 128)
    steps = groups.abs().amax(-1, keepdim=True) / 7
    plain = (torch.round(groups / steps) * steps - groups).square().sum()
    assert pack_rows(rows, 4, 128)[2].error < 0.75 * plain


def test_blocks_make_no_difference():
    """More rows than are rounded at once, against each row by itself."""
    rows = random_rows(torch.bfloat16, 2 * SERIAL_VALUES // 256 + 3)
    words, scales, errors = pack_rows(rows, 4, 128)
    parts = [pack_rows(row[None], 4, 128) for row in rows]
    assert torch.equal(words, torch.cat([part[0] for part in parts]))
    assert torch.equal(scales, torch.cat([part[1] for part in parts]))
    assert errors.error == pytest.approx(sum(part[2].error for part in parts))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_order_of_words(bits):
    """By hand: values that are whole steps are stored as they are, the first in the lowest bits."""
    low = -(1 << bits - 1)
    values = [low, *range(7)]
    words, scales, errors = pack_rows(torch.tensor([[float(v) for v in values]]), bits, 8)
    assert (scales.tolist(), errors.error) == ([[1.0]], 0.0)
    number = sum(word % 2**32 << 32 * index for index, word in enumerate(words[0].tolist()))
    assert [(number >> bits * i) % (1 << bits) for i in range(8)] == [value - low for value in values]


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_zeros_and_of_tiny_and_huge_values(dtype):
    rows = torch.zeros(4, 32)
    rows[1] = LEAST_VALUE[dtype] / 8
    rows[2, 3], rows[3, 5] = torch.finfo(dtype).max, -torch.finfo(dtype).max
    words, scales, _ = pack_rows(rows.to(dtype), 4, 32)
    result = decoded(words, scales, 4, 32, dtype)
    assert torch.isfinite(result).all() and torch.isfinite(scales).all() and scales.all()
    assert not result[0].any() and result[1].abs().max() <= LEAST_VALUE[dtype]
    assert torch.equal(result[2:], rows[2:].to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_finite_number_shows(value, bits):
    rows = random_rows(torch.bfloat16)
    rows[5, 77] = value
    assert not pack_rows(rows, bits, 128)[2].is_finite
